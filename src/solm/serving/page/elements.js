// What all parts of the page use.

export const AXES = ["attention", "mlp", "bits"];
export const $ = (id) => document.getElementById(id);

export function element(tag, parent, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

export function button(parent, text, className, act) {
  const made = element("button", parent, className, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// A button that copies what `text` gives. Pages from afar without TLS have no clipboard but the old way.
export function copyButton(parent, text, what) {
  const made = button(parent, "Copy", "copy", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      const field = element("textarea", document.body);
      field.value = text();
      field.select();
      copied = document.execCommand("copy");
      field.remove();
      made.focus();
    }
    made.textContent = copied ? "Copied" : "Not copied";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  });
  made.title = `Copy ${what}`;
  made.setAttribute("aria-live", "polite");
  return made;
}
