// Server-sent events of a response.

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value: more } = await reader.read();
    if (done) return;
    kept += more;
    const parts = kept.split("\n\n");
    kept = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]" && !data.startsWith(":")) yield JSON.parse(data);
    }
  }
}
