// Markdown as DOM nodes: what models write in chats. HTML is shown as the text that it is, images are links, and links
// lead to web and mail addresses alone. Nothing here parses HTML. Every piece of text knows where in the source it
// stands, so that the caller can draw it token by token.

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const DEEPEST = 8; // of quotes and lists in one another
const LONGEST_LINK = 1000;
const MOST_OPEN = 64; // marks of emphasis that wait for their ends
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const ADDRESS = /^https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}*_~]/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

// Draw `source` into `parent`. leaf(parent, start, end) draws the text source.slice(start, end). Blocks that are as they
// were, as while a reply grows, are left alone; `parent` remembers them.
export function renderMarkdown(parent, source, leaf) {
  const drawn = parent.drawnBlocks ?? [];
  const found = blocks(source, lines(source), 0);
  let same = 0;
  while (same < found.length && same < drawn.length && drawn[same].key === key(source, found[same])) same += 1;
  for (const old of drawn.splice(same)) old.node.remove();
  for (const block of found.slice(same)) {
    const node = draw(source, block, leaf);
    parent.append(node);
    drawn.push({ key: key(source, block), node });
  }
  parent.drawnBlocks = drawn;
}

// Text that is equal from `start` to `end` may belong to a block of another kind once more has come.
function key(source, block) {
  return `${block.kind} ${block.start} ${source.slice(block.start, block.end)}`;
}

function lines(source) {
  const found = [];
  for (let start = 0; start <= source.length;) {
    const end = source.indexOf("\n", start);
    found.push({ start, end: end < 0 ? source.length : end });
    if (end < 0) break;
    start = end + 1;
  }
  return found;
}

function blocks(source, all, depth) {
  const found = [];
  const text = (line) => source.slice(line.start, line.end);
  for (let at = 0; at < all.length;) {
    const first = at, line = text(all[at]);
    let block = null, match = null;
    if (!line.trim()) {
      at += 1;
      continue;
    }
    if ((match = FENCE.exec(line))) {
      const mark = match[1];
      at += 1;
      const from = at;
      while (at < all.length && !(text(all[at]).trim().startsWith(mark) && !text(all[at]).trim().slice(mark.length).replaceAll(mark[0], ""))) at += 1;
      block = { kind: "code", language: match[2].trim(), lines: all.slice(from, at) };
      at += 1;
    } else if ((match = HEADING.exec(line))) {
      const said = match[2].trimEnd().replace(/ #+$/, ""), start = all[at].end - match[2].length;
      block = { kind: "heading", level: match[1].length, lines: [{ start, end: start + said.length }] };
      at += 1;
    } else if (RULE.test(line)) {
      block = { kind: "rule" };
      at += 1;
    } else if (depth < DEEPEST && QUOTE.test(line)) {
      const inner = [];
      for (; at < all.length && (match = QUOTE.exec(text(all[at]))); at += 1) inner.push({ start: all[at].start + match[0].length, end: all[at].end });
      block = { kind: "quote", blocks: blocks(source, inner, depth + 1) };
    } else if (depth < DEEPEST && ITEM.test(line)) {
      [block, at] = list(source, all, at, depth);
    } else if (line.includes("|") && at + 1 < all.length && isDivider(text(all[at + 1]))) {
      const rows = [all[at]];
      for (at += 2; at < all.length && text(all[at]).includes("|"); at += 1) rows.push(all[at]);
      block = { kind: "table", rows: rows.map((row) => cells(source, row)) };
    } else {
      at += 1;
      while (at < all.length && text(all[at]).trim() && ![FENCE, HEADING, RULE, QUOTE, ITEM].some((other) => other.test(text(all[at])))) at += 1;
      block = { kind: "paragraph", lines: all.slice(first, at) };
    }
    found.push({ ...block, start: all[first].start, end: all[Math.min(at, all.length) - 1].end });
  }
  return found;
}

function isDivider(line) {
  return line.includes("-") && line.length < 1000 && DIVIDER.test(line);
}

function list(source, all, at, depth) {
  const text = (line) => source.slice(line.start, line.end);
  const [, indent, mark] = ITEM.exec(text(all[at]));
  const ordered = /\d/.test(mark), items = [];
  while (at < all.length) {
    const match = ITEM.exec(text(all[at]));
    if (!match || match[1].length > indent.length + 3 || /\d/.test(match[2]) !== ordered) break;
    const width = match[0].length, inner = [{ start: all[at].start + width, end: all[at].end }];
    for (at += 1; at < all.length; at += 1) {
      const line = text(all[at]), spaces = line.length - line.trimStart().length;
      const blank = !line.trim(), next = all[at + 1];
      if (blank && !(next && /^ {2,}\S/.test(text(next)))) break;
      if (!blank && spaces < Math.min(width, indent.length + 2)) break;
      inner.push({ start: Math.min(all[at].start + Math.min(spaces, width), all[at].end), end: all[at].end });
    }
    items.push(blocks(source, inner, depth + 1));
    // One blank line between two items.
    if (at + 1 < all.length && !text(all[at]).trim() && ITEM.test(text(all[at + 1]))) at += 1;
  }
  return [{ kind: "list", ordered, first: Number.parseInt(mark, 10) || 1, items }, at];
}

function cells(source, row) {
  let { start, end } = row;
  while (start < end && " |".includes(source[start]) && source[start - 1] !== "|") start += 1;
  const found = [];
  for (let from = start, at = start; at <= end; at += 1) {
    if (at < end && (source[at] !== "|" || source[at - 1] === "\\")) continue;
    if (at < end || source.slice(from, at).trim()) found.push({ start: from, end: at });
    from = at + 1;
  }
  return found.map((cell) => {
    const text = source.slice(cell.start, cell.end);
    return { start: cell.start + text.length - text.trimStart().length, end: cell.start + text.trimEnd().length };
  });
}

function make(tag, parent) {
  const made = document.createElement(tag);
  parent?.append(made);
  return made;
}

function draw(source, block, leaf) {
  const within = (parent, some) => { for (const one of some) parent.append(draw(source, one, leaf)); return parent; };
  switch (block.kind) {
    case "code": {
      const box = make("div"), code = make("code", make("pre", box));
      box.className = "code";
      box.dataset.language = block.language.slice(0, 30);
      block.lines.forEach((line, index) => {
        const until = Math.min(source.length, line.end + (index < block.lines.length - 1)); // with the end of the line
        if (until > line.start) leaf(code, line.start, until);
      });
      return box;
    }
    case "heading":
      return inline(source, block.lines, make(`h${Math.min(6, block.level + 2)}`), leaf);
    case "rule":
      return make("hr");
    case "quote":
      return within(make("blockquote"), block.blocks);
    case "list": {
      const box = make(block.ordered ? "ol" : "ul");
      if (block.ordered) box.start = block.first;
      for (const item of block.items) {
        const one = make("li", box);
        // A line alone needs no paragraph.
        item.forEach((part, index) => {
          if (part.kind === "paragraph" && index === 0) inline(source, part.lines, one, leaf);
          else within(one, [part]);
        });
      }
      return box;
    }
    case "table": {
      const box = make("div"), table = make("table", box);
      box.className = "wide";
      block.rows.forEach((row, index) => {
        const line = make("tr", table);
        for (const cell of row) inline(source, [cell], make(index ? "td" : "th", line), leaf);
      });
      return box;
    }
    default:
      return inline(source, block.lines, make("p"), leaf);
  }
}

// Text with emphasis, code and links. Marks are matched by a stack, in one pass.
function inline(source, some, parent, leaf) {
  const pieces = []; // {start, end} of text, {tag, ...} of marks
  const open = [], unclosed = new Set();
  some.forEach((line, index) => {
    if (index) pieces.push({ kind: "break" });
    scan(source, line.start, line.end, pieces, open, unclosed);
  });
  const nodes = [parent];
  for (const piece of pieces) {
    const inner = nodes.at(-1);
    if (piece.kind === "break") make("br", inner);
    else if (piece.kind === "code") leaf(make("code", inner), piece.start, piece.end);
    else if (piece.kind === "link") {
      const link = make("a", inner);
      link.href = piece.href;
      link.rel = "noopener noreferrer nofollow";
      link.target = "_blank";
      leaf(link, piece.start, piece.end);
    } else if (piece.kind === "open" && piece.tag) nodes.push(make(piece.tag, inner));
    else if (piece.kind === "close" && piece.tag) nodes.pop();
    else if (piece.end > piece.start) leaf(inner, piece.start, piece.end);
  }
  return parent;
}

function scan(source, start, end, pieces, open, unclosed) {
  let from = start, at = start;
  const flush = (until) => { if (until > from) pieces.push({ kind: "text", start: from, end: until }); };
  const take = (piece, until) => { flush(at); pieces.push(piece); from = at = until; };
  while (at < end) {
    const mark = source[at];
    if (mark === "\\" && at + 1 < end && PUNCTUATION.test(source[at + 1])) {
      flush(at);
      from = at + 1;
      at += 2;
    } else if (mark === "`") {
      let run = 1;
      while (source[at + run] === "`" && at + run < end) run += 1;
      const close = unclosed.has(run) ? -1 : closing(source, at + run, end, run);
      if (close < 0) {
        unclosed.add(run);
        at += run;
      } else take({ kind: "code", start: at + run, end: close }, close + run);
    } else if (mark === "[" || (mark === "!" && source[at + 1] === "[")) {
      const link = linkAt(source, at, end);
      if (link) take(link, link.until);
      else at += 1;
    } else if (mark === "h" && source.startsWith("http", at)) {
      const [said] = ADDRESS.exec(source.slice(at, Math.min(end, at + LONGEST_LINK))) ?? [""];
      const href = said && safe(said);
      if (href) take({ kind: "link", start: at, end: at + said.length, href }, at + said.length);
      else at += 1;
    } else if ("*_~".includes(mark)) {
      let run = 1;
      while (source[at + run] === mark && at + run < end) run += 1;
      flush(at);
      emphasise(source, at, run, start, end, pieces, open);
      from = at = at + run;
    } else at += 1;
  }
  flush(end);
}

function closing(source, at, end, run) {
  for (let place = source.indexOf("`", at); place >= 0 && place < end;) {
    let length = 1;
    while (source[place + length] === "`" && place + length < end) length += 1;
    if (length === run) return place;
    place = source.indexOf("`", place + length);
  }
  return -1;
}

function linkAt(source, at, end) {
  const from = at + (source[at] === "!" ? 2 : 1), most = Math.min(end, at + LONGEST_LINK);
  const found = /^([^\]\n]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+["'][^"'\n]*["'])?\s*\)/.exec(source.slice(from, most));
  const href = found && safe(found[2]);
  if (!href) return null;
  return { kind: "link", start: from, end: from + found[1].length, href, until: from + found[0].length };
}

// An address that a click may open, null for any other.
export function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function emphasise(source, at, run, start, end, pieces, open) {
  const mark = source[at], before = at > start ? source[at - 1] : " ", after = at + run < end ? source[at + run] : " ";
  const opens = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const closes = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const word = mark === "_" && /\w/.test(before) && /\w/.test(after); // as in some_name
  let left = run;
  while (closes && !word && left > 0) {
    const place = open.findLastIndex((one) => one.mark === mark && one.left > 0);
    if (place < 0) break;
    const one = open[place], size = mark === "~" ? 2 : Math.min(2, one.left, left);
    if (size > one.left || size > left) break;
    open.length = place + 1; // what was opened inside and not closed is text
    one.left -= size;
    const tag = mark === "~" ? "s" : size === 2 ? "strong" : "em";
    one.pieces[one.left] = { kind: "open", tag };
    for (let index = one.left + 1; index < one.left + size; index += 1) one.pieces[index] = null;
    pieces.push({ kind: "close", tag });
    left -= size;
    if (one.left === 0) open.pop();
    apply(one, pieces);
  }
  if (left === 0) return;
  const places = Array.from({ length: left }, (_, index) => ({ kind: "text", start: at + run - left + index, end: at + run - left + index + 1 }));
  const one = { mark, left, pieces: places, at: pieces.length };
  pieces.push(...places);
  if (opens && !word && open.length < MOST_OPEN && run < 8) open.push(one);
}

// Put the marks of an opener where they stand among the pieces.
function apply(one, pieces) {
  one.pieces.forEach((piece, index) => { pieces[one.at + index] = piece ?? { kind: "open", tag: "" }; });
}
