// One text with its evidence. All text of models and documents goes through textContent: nothing in it is markup.
const HUES = 6;
let panels = 0;

export class Panel {
  constructor(title, prompt, evidence) {
    this.id = `p${panels++}`;
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.text = find(".text");
    this.fresh = find(".new");
    this.cards = find("aside > .cards");
    this.forPrompt = find(".for-prompt");
    this.summary = find(".summary");
    this.none = find(".none");
    find(".written h2").textContent = title;
    this.text.setAttribute("aria-label", title);
    find(".given").textContent = prompt;
    if (!evidence) {
      find("aside").remove();
      this.element.classList.add("bare");
    }
    this.characters = []; // code points, as the server counts them
    this.retrieved = new Map();
    this.numbers = new Map(); // for readers: those that served the text, from 1
    this.tokens = 0;
    this.frame = 0;
    this.begin = performance.now();
    this.busy(true);
  }

  busy(on) {
    this.text.setAttribute("aria-busy", String(on));
  }

  add(choice) {
    this.characters.push(...choice.text);
    for (const entry of choice.retrieved ?? []) {
      const known = this.retrieved.get(entry.index);
      if (known) known.served = entry.served;
      else {
        this.retrieved.set(entry.index, { ...entry });
        this.addCard(entry);
      }
    }
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  finish(message, whole) {
    this.busy(false);
    this.draw();
    this.summary.textContent = message;
    this.none.textContent = whole && !this.retrieved.size ? "Nothing was retrieved." : "";
  }

  // The text in parts: those that a retrieval served, and those that none did.
  parts() {
    const length = this.characters.length;
    const parts = [];
    let at = 0;
    const upTo = (stop, key, index) => {
      if (stop > at) parts.push({ key, index, text: this.characters.slice(at, stop).join("") });
      at = Math.max(at, stop);
    };
    for (const { index, served } of this.retrieved.values()) {
      const begin = Math.min(served.text_start, length);
      upTo(begin, `before${index}`, null);
      upTo(Math.min(served.text_stop ?? length, length), `chunk${index}`, index);
    }
    upTo(length, "rest", null);
    return parts;
  }

  // Elements that are there stay there: a reader may be on one of them.
  draw() {
    const parts = this.parts();
    parts.forEach((part, place) => {
      let node = this.fresh.children[place];
      if (node?.dataset.key !== part.key) {
        const fresh = part.index === null ? document.createElement("span") : this.chunk(part.index);
        fresh.dataset.key = part.key;
        if (node) node.replaceWith(fresh);
        else this.fresh.append(fresh);
        node = fresh;
      }
      if (node.textContent !== part.text) node.textContent = part.text;
    });
    while (this.fresh.children.length > parts.length) this.fresh.lastElementChild.remove();
  }

  hue(index) {
    return ((this.numbers.get(index) ?? 1) - 1) % HUES;
  }

  chunk(index) {
    const node = element("span", `chunk h${this.hue(index)}`);
    node.id = `${this.id}-chunk-${index}`;
    node.tabIndex = 0;
    node.dataset.number = this.numbers.get(index);
    node.setAttribute("role", "link");
    node.setAttribute("aria-details", `${this.id}-card-${index}`);
    this.link(node, index, "card");
    return node;
  }

  addCard(entry) {
    const { index, query, neighbors, served } = entry;
    const card = element("article", "card");
    card.id = `${this.id}-card-${index}`;
    card.tabIndex = 0;
    const places = `tokens ${query.token_start}–${query.token_stop - 1}`;
    const prompt = served.token_stop !== null && served.token_stop <= served.token_start;
    if (!prompt) this.numbers.set(index, this.numbers.size + 1);
    card.classList.add(`h${this.hue(index)}`);
    card.append(element("h3", "", `${prompt ? "Prompt" : this.numbers.get(index)} · retrieved with ${places}`));
    card.append(element("p", "query", `“${shorten(query.text, 160)}”`));
    if (!neighbors.length) card.append(element("p", "muted small", "Nothing was found."));
    neighbors.forEach((neighbor, rank) => card.append(this.neighbor(neighbor, rank === 0)));
    if (prompt) {
      this.forPrompt.hidden = false;
      const list = this.forPrompt.querySelector(".cards");
      list.append(card);
      this.forPrompt.querySelector("summary").textContent = `${list.children.length} for earlier parts of the prompt`;
    } else {
      this.link(card, index, "chunk");
      this.cards.append(card);
    }
  }

  neighbor(neighbor, open) {
    const details = element("details");
    details.open = open;
    const summary = breakable(element("summary"), neighbor.title || neighbor.document);
    if (neighbor.distance !== null) summary.append(element("span", "distance", `distance ${neighbor.distance.toFixed(2)}`));
    const quote = element("blockquote", "", neighbor.text);
    if (neighbor.continuation) quote.append(element("span", "more", neighbor.continuation));
    const named = !neighbor.title || neighbor.title === neighbor.document;
    const source = named ? `chunk ${neighbor.chunk}` : `${neighbor.document} · chunk ${neighbor.chunk}`;
    details.append(summary, breakable(element("p", "source"), source), quote);
    return details;
  }

  // Hovering or focusing one of a chunk and its card lights both; Enter goes from one to the other.
  link(node, index, other) {
    const both = () =>
      ["chunk", "card"].map((kind) => document.getElementById(`${this.id}-${kind}-${index}`)).filter(Boolean);
    const light = (on) => both().forEach((one) => one.classList.toggle("lit", on));
    const target = () => document.getElementById(`${this.id}-${other}-${index}`);
    const show = () => {
      light(true);
      if (other === "card") reveal(target());
    };
    node.addEventListener("mouseenter", show);
    node.addEventListener("focus", show);
    node.addEventListener("mouseleave", () => light(false));
    node.addEventListener("blur", () => light(false));
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === node) target()?.focus();
    });
    if (other === "card") node.addEventListener("click", () => target()?.focus());
  }
}

// Scrolls the evidence to a card, and nothing else: a page that moves under the mouse is no help.
function reveal(card) {
  const list = card?.closest("aside");
  if (!list) return;
  const inner = card.getBoundingClientRect();
  const outer = list.getBoundingClientRect();
  if (inner.top < outer.top || inner.height > outer.height) list.scrollTop += inner.top - outer.top - 8;
  else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom + 8;
}

// Dotted names and paths may break behind their dots and slashes.
function breakable(node, text) {
  for (const part of text.split(/(?<=[._/])/)) node.append(part, element("wbr"));
  return node;
}

function element(name, className = "", text = null) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== null) node.textContent = text;
  return node;
}

function shorten(text, length) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length <= length ? line : `${line.slice(0, length - 1)}…`;
}
