// The little Markdown that answers are written in, as elements: text never becomes markup.

const INLINE = /\*\*(.+?)\*\*|\*(.+?)\*|`(.+?)`/g;
const HEADING = { 1: "h3", 2: "h4", 3: "h5" };

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(end, match.index));
    const [, strong, emphasis, code] = match;
    parts.push(element(strong ? "strong" : emphasis ? "em" : "code", strong ?? emphasis ?? code));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)].filter(Boolean);
}

export function render(text) {
  const blocks = [];
  let list = null;
  let paragraph = null;
  for (const line of text.split("\n")) {
    const heading = /^(#{1,3}) (.*)/.exec(line);
    const item = /^(?:(\d+)\.|-) (?:\[( |x)\] )?(.*)/.exec(line);
    if (item) {
      const kind = item[1] ? "ol" : "ul";
      if (list?.localName !== kind) blocks.push((list = element(kind)));
      const entry = element("li", ...inline(item[3]));
      if (item[2]) entry.className = item[2] === "x" ? "done" : "open";
      list.append(entry);
    } else if (line.trim() && !heading && paragraph) {
      paragraph.append(" ", ...inline(line));
      continue;
    } else if (line.trim() && !heading) {
      blocks.push((paragraph = element("p", ...inline(line))));
      list = null;
      continue;
    }
    if (heading) blocks.push(element(HEADING[heading[1].length], ...inline(heading[2])));
    if (!item) list = null;
    paragraph = null;
  }
  return blocks;
}
