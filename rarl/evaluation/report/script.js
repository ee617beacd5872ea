// Filters and shows the examples. Replies are untrusted: text goes into the page by textContent alone.
"use strict";
(() => {
  const PAGE = 30;
  const data = JSON.parse(document.getElementById("examples-data").textContent);
  const list = document.getElementById("example-list");
  const more = document.getElementById("show-more");
  const count = document.getElementById("match-count");
  const form = document.getElementById("filters");
  const field = (name) => document.getElementById(`filter-${name}`);
  let matches = [];
  let shown = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const plain = (text) => text.toLowerCase().replace(/\s+/g, " ").trim();

  const haystacks = data.examples.map((one) => plain([
    one.id, one.question, one.reference, one.rationale, one.known, ...one.labels, ...Object.values(one.facts), ...(one.options || []),
    ...one.replies.flatMap((reply) => reply
      ? [reply.answer, reply.thinking, reply.raw, reply.judge && reply.judge.reason] : []),
  ].filter(Boolean).join("\n")));

  for (const type of [...new Set(data.examples.map((one) => one.type))].sort()) {
    field("type").append(element("option", "", type));
  }

  function matching() {
    const model = Number(field("model").value);
    const outcome = field("outcome").value;
    const pair = field("pair").value ? field("pair").value.split(",").map(Number) : null;
    const text = plain(field("text").value);
    return data.examples.filter((one, place) => {
      if (field("data").value && one.dataSet !== field("data").value) return false;
      if (field("type").value && one.type !== field("type").value) return false;
      const reply = one.replies[model];
      if (outcome && (!reply || reply.correct !== (outcome === "right"))) return false;
      if (pair) {
        const [a, b] = pair.map((index) => one.replies[index]);
        if (!a || !b || a.correct === b.correct) return false;
      }
      return !text || haystacks[place].includes(text);
    });
  }

  function chips(one) {
    const made = element("p", "chips");
    // A modality or an organ tells by itself what it is; other fields of the data are named.
    const facts = Object.entries(one.facts).map(([name, value]) =>
      ["modality", "organ"].includes(name) ? value : `${name.replaceAll("_", " ")}: ${value}`);
    const images = data.images[one.image];
    const none = images && !images.length ? ["no image"] : [];
    for (const text of [one.dataSet, one.type, ...none, ...facts]) made.append(element("span", "", text));
    return made;
  }

  // The images of a question in order, each above its label. Boxes are of the only one.
  function pictures(one, urls) {
    const frame = element("div", "picture");
    if (!urls) {
      frame.append(element("p", "missing", "The picture is not to be had."));
      return frame;
    }
    const shown = [one.facts.modality, one.facts.organ].filter(Boolean).join(", ");
    urls.forEach((url, place) => {
      const image = element("img");
      image.loading = "lazy";
      const number = urls.length > 1 ? ` ${place + 1} of ${urls.length} of` : "";
      const label = one.labels[place] || "";
      image.alt = `Image${number} ${one.imageId}` + (label && `, ${label}`) + (shown && ` (${shown})`);
      image.src = url;
      const figure = element("figure");
      const stack = element("div", "stack");
      stack.append(image);
      figure.append(stack);
      if (label || urls.length > 1) figure.append(element("figcaption", "", label || `${place + 1}`));
      frame.append(figure);
    });
    const best = one.replies[data.models.indexOf(data.best)];
    const named = best ? best.boxes : [];
    if (one.boxes.length || named.length) frame.querySelector(".stack").append(overlay(one.boxes, named));
    if (named.length) frame.append(element("p", "key", `Solid: the reference. Dashed: ${data.best}.`));
    else if (one.boxes.length) frame.append(element("p", "key", "Solid: the reference."));
    return frame;
  }

  function overlay(known, named) {
    const make = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      return made;
    };
    const labels = [...new Set([...known, ...named].map(([label]) => label))].join(", ");
    // The sides of the picture are 1, whatever its size.
    const drawn = make("svg", { class: "boxes", viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img" });
    drawn.setAttribute("aria-label", `Boxes: ${labels}`);
    for (const [kind, boxes] of [["known", known], ["named", named]]) {
      for (const [label, x, y, width, height] of boxes) {
        const rect = make("rect", { class: kind, x, y, width, height, "vector-effect": "non-scaling-stroke" });
        const title = make("title", {});
        title.textContent = label;
        rect.append(title);
        drawn.append(rect);
      }
    }
    return drawn;
  }

  function labelled(label, text, className) {
    const made = element("p", className);
    made.append(element("span", "label", label), " ");
    const value = element("span", "text", text);
    value.dir = "auto";
    made.append(value);
    return made;
  }

  function judgement(judge) {
    if (judge.status === "unreachable") return "could not be reached";
    if (judge.status === "unparsable") return "gave no verdict that can be read";
    const parts = [];
    if (judge.correctness !== null) parts.push(`correctness ${judge.correctness} of 3`);
    if (judge.explanation !== null) parts.push(`explanation ${judge.explanation.toFixed(2)}`);
    return parts.join(", ") + (judge.reason ? ` – ${judge.reason}` : "");
  }

  function replyCard(reply, name) {
    const card = element("div", `reply ${reply.correct ? "right" : "wrong"}`);
    const head = element("div", "head");
    head.append(element("h4", "", name), element("span", "mark", reply.correct ? "✓ right" : "✗ wrong"));
    card.append(head);
    if (reply.answer !== null) card.append(labelled("Answer", reply.answer, "answer"));
    if (reply.thinking) card.append(labelled("Thinking", reply.thinking));
    if (reply.raw !== null) card.append(labelled("Reply, not in the form that was asked for", reply.raw, "raw"));
    if (reply.reasoning !== null) card.append(labelled("Reasoning score", reply.reasoning.toFixed(2)));
    if (reply.judge) card.append(labelled("Judge", judgement(reply.judge)));
    return card;
  }

  function exampleCard(one) {
    const images = data.images[one.image];
    // One image stands beside its question, several above theirs.
    const card = element("article", images && images.length !== 1 ? "example wide" : "example");
    const text = element("div", "body");
    const title = element("h3", "", one.question);
    title.dir = "auto";
    title.tabIndex = -1;
    text.append(chips(one), title);
    if (one.options) {
      const options = element("ul", "options");
      for (const option of one.options) {
        options.append(element("li", option === one.reference ? "chosen" : "", option));
      }
      text.append(options);
    }
    text.append(labelled("Reference", one.reference, "reference"));
    if (one.rationale) text.append(labelled("Rationale", one.rationale));
    if (one.known) text.append(labelled("Facts", one.known));
    const replies = element("div", "replies");
    one.replies.forEach((reply, index) => {
      if (reply) replies.append(replyCard(reply, data.models[index]));
    });
    if (!images || images.length) card.append(pictures(one, images));
    card.append(text, replies);
    return card;
  }

  function showMore() {
    const next = matches.slice(shown, shown + PAGE).map(exampleCard);
    list.append(...next);
    shown += next.length;
    more.hidden = shown >= matches.length;
    more.textContent = `Show ${Math.min(PAGE, matches.length - shown)} more`;
    count.textContent = `${matches.length} of ${data.examples.length} examples match`
      + (shown < matches.length ? `, ${shown} shown` : "");
    return next;
  }

  function update() {
    matches = matching();
    shown = 0;
    list.replaceChildren();
    showMore();
  }

  more.addEventListener("click", () => {
    const [first] = showMore();
    if (first) first.querySelector("h3").focus();  // the keyboard goes on where the list does
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => event.target.tagName === "SELECT" && update());
  field("text").addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));  // the fields are cleared after the event

  // Paper has nothing to click: what is folded is opened, and folded again afterwards.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
    list.querySelectorAll("img").forEach((image) => { image.loading = "eager"; });
  });
  window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
  update();
})();
