// markdown.js - the part of Markdown that models write, as DOM nodes.  In: text
// that may stop anywhere.  Out: elements made with createElement and text nodes
// alone: whatever the text says, it cannot become markup.

function element(name, children = [], className = '') {
    const e = document.createElement(name);
    if (className) e.className = className;
    e.append(...children);
    return e;
}

// inline = "`" code "`" | "**" inline "**" | "*" inline "*" | character
const span = /`([^`]+)`|\*\*(?=\S)(.+?\S?)\*\*|\*(?=[^\s*])(.+?[^\s*]?)\*(?!\*)/s;

function inline(text) {
    const out = [];
    for (;;) {
        const m = span.exec(text);
        if (!m) break;
        if (m.index) out.push(text.slice(0, m.index));
        if (m[1] !== undefined) out.push(element('code', [m[1]]));
        else if (m[2] !== undefined) out.push(element('strong', inline(m[2])));
        else out.push(element('em', inline(m[3])));
        text = text.slice(m.index + m[0].length);
    }
    if (text) out.push(text);
    return out;
}

const fence = /^\s*(```+|~~~+)\s*([\w+#.-]*)/;
const heading = /^(#{1,6})\s+(.*?)\s*#*$/;
const rule = /^\s*([-*_])(\s*\1){2,}\s*$/;
const item = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const quote = /^\s*>\s?(.*)$/;

// Cuts text into blocks: { kind, lines, ... }.
function blocks(text) {
    const out = [];
    let open = null;
    const start = (block) => { open = block; out.push(block); };

    for (const line of text.split('\n')) {
        if (open && open.kind === 'code') {
            if (line.trim().startsWith(open.fence) && !line.trim()
                .slice(open.fence.length).trim()) open = null;
            else open.lines.push(line);
            continue;
        }
        const m = fence.exec(line);
        if (m) {
            start({ kind: 'code', fence: m[1], language: m[2], lines: [] });
        } else if (!line.trim()) {
            if (open && open.kind === 'list') open.gap = true;
            else open = null;
        } else if (heading.test(line) || rule.test(line)) {
            out.push({ kind: heading.test(line) ? 'heading' : 'rule',
                       lines: [line] });
            open = null;
        } else if (item.test(line)
                   || (open && open.kind === 'list'
                       && (!open.gap || /^\s{2,}/.test(line)))) {
            if (!open || open.kind !== 'list') start({ kind: 'list', lines: [] });
            open.lines.push(line);
            open.gap = false;
        } else {
            const kind = quote.test(line) ? 'quote' : 'paragraph';
            if (!open || open.kind !== kind) start({ kind, lines: [] });
            open.lines.push(line);
        }
    }
    return out;
}

// list = { indent marker text { newline continued text } }, nested by indent
function list(lines) {
    const stack = [];       // { indent, list } from the outermost
    let root = null;

    for (const line of lines) {
        const m = item.exec(line);
        if (!m) {
            const last = stack[stack.length - 1].list.lastElementChild;
            last.append('\n', ...inline(line.trim()));
            continue;
        }
        const indent = m[1].length;
        while (stack.length > 1 && indent < stack[stack.length - 1].indent) {
            stack.pop();
        }
        const top = stack[stack.length - 1];
        if (!top || indent > top.indent + 1) {
            const ordered = /\d/.test(m[2]);
            const inner = element(ordered ? 'ol' : 'ul');
            if (ordered) inner.start = parseInt(m[2], 10);
            if (top) top.list.lastElementChild.append(inner);
            else root = inner;
            stack.push({ indent, list: inner });
        }
        stack[stack.length - 1].list.append(element('li', inline(m[3])));
    }
    return root;
}

function build(block) {
    const text = block.lines.join('\n');

    switch (block.kind) {
    case 'code': {
        const pre = element('pre', [element('code', [text])]);
        pre.tabIndex = 0;       // it may scroll, so the keyboard must reach it
        return block.language
            ? element('figure', [element('figcaption', [block.language]), pre])
            : pre;
    }
    case 'heading': {
        const m = heading.exec(text);
        return element(`h${Math.min(m[1].length + 3, 6)}`, inline(m[2]));
    }
    case 'rule':
        return element('hr');
    case 'list':
        return list(block.lines);
    case 'quote':
        return element('blockquote', inline(block.lines
            .map((line) => quote.exec(line)?.[1] ?? line).join('\n')));
    default:
        return element('p', inline(text));
    }
}

// Shows text in an element.  Blocks that have not changed since the last call
// stay, so that a long answer costs no more per token than a short one and a
// selection survives.
export function show(parent, text) {
    const old = parent.blocks || [];
    const now = blocks(text).map((b) => ({ b, key: JSON.stringify(b) }));
    let same = 0;
    while (same < now.length && same < old.length
           && now[same].key === old[same]) same++;
    while (parent.childNodes.length > same) parent.lastChild.remove();
    for (const { b } of now.slice(same)) parent.append(build(b));
    parent.blocks = now.map((n) => n.key);
}
