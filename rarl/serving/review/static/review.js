// One rationale at a time: accept, edit or reject, each with one key. Every mark is on disk before the next is shown.
import { h, render, Component } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

const html = htm.bind(h);
const SAID = { accept: "Accepted", edit: "Edited", reject: "Rejected" };
const KEYS = { a: "accept", e: "edit", r: "reject", n: "open", z: "zoom", ArrowLeft: "previous", ArrowRight: "next" };

async function request(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`/api${path}`, options);
  } catch {
    throw new Error("The server cannot be reached; start `rarl data review` again. What you have marked is kept.");
  }
  const told = await response.json().catch(() => null);
  if (!response.ok) throw new Error(told?.error?.message ?? `the server answered ${response.status}`);
  return told;
}

class App extends Component {
  constructor() {
    super();
    this.state = { about: null, item: null, draft: null, busy: false, zoomed: false, error: "", said: "" };
    this.onKey = this.onKey.bind(this);
  }

  async componentDidMount() {
    window.addEventListener("keydown", this.onKey);
    window.addEventListener("hashchange", () => this.show(this.placeInAddress()));
    try {
      const about = await request("/about");
      this.setState({ about });
      if (about.total) await this.show(this.placeInAddress() ?? about.open ?? 0);
    } catch (error) {
      this.setState({ error: error.message });
    }
  }

  placeInAddress() {
    const number = /^#(\d+)$/.exec(location.hash);
    return number ? Number(number[1]) - 1 : null;
  }

  async show(place, said = "") {
    if (place === null || place === this.state.item?.place && !said) return;
    try {
      const item = await request(`/items/${place}`);
      history.replaceState(null, "", `#${place + 1}`);
      this.setState({ item, draft: null, zoomed: false, error: "", said });
    } catch (error) {
      this.setState({ error: error.message });
    }
  }

  async mark(decision, text) {
    const { item, busy } = this.state;
    if (busy || !item) return;
    this.setState({ busy: true, error: "" });
    try {
      const { marked, total, open } = await request(`/items/${item.place}/mark`, { decision, shown: item.shown, text });
      const said = `${SAID[decision]} number ${item.place + 1}. ${marked} of ${total} are marked.`;
      await this.show(open ?? item.place, said);
    } catch (error) {
      this.setState({ error: error.message });
    }
    this.setState({ busy: false });
  }

  edit() {
    const { item } = this.state;
    this.setState({ draft: item.mark?.text ?? item.rationale }, () => {
      const field = document.querySelector("#draft");
      field.focus();
      field.setSelectionRange(field.value.length, field.value.length);
    });
  }

  cancel() { this.setState({ draft: null }, () => document.querySelector("#edit").focus()); }

  act(what) {
    const { item } = this.state;
    if (!item) return;
    if (what === "accept" || what === "reject") this.mark(what);
    if (what === "edit") this.edit();
    if (what === "open" && item.open !== null) this.show(item.open, "");
    if (what === "zoom") this.setState(({ zoomed }) => ({ zoomed: !zoomed }), () => this.state.zoomed && document.querySelector("#frame").focus());
    if (what === "previous") this.show(Math.max(0, item.place - 1));
    if (what === "next") this.show(Math.min(item.total - 1, item.place + 1));
  }

  onKey(event) {
    if (this.state.draft !== null) {
      if (event.key === "Escape") this.cancel();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.mark("edit", this.state.draft);
      else return;
      return event.preventDefault();
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (this.state.zoomed && event.target.id === "frame" && event.key.startsWith("Arrow")) return; // scrolls
    const what = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!what) return;
    event.preventDefault();
    this.act(what);
  }

  button(what, label, key, kind = "secondary outline") {
    const pressed = this.state.item?.mark?.decision === what;
    const shown = { ArrowLeft: "←", ArrowRight: "→" }[key] ?? key.toUpperCase();
    return html`<button type="button" id=${what} class=${kind} disabled=${this.state.busy} aria-keyshortcuts=${key}
      aria-pressed=${what in SAID ? String(pressed) : undefined} onClick=${() => this.act(what)}>${label} <kbd>${shown}</kbd></button>`;
  }

  rationale() {
    const { item, draft } = this.state;
    if (draft === null) {
      const edited = item.mark?.decision === "edit";
      return html`<h2 id="rationale-title">Rationale</h2>
        <p id="rationale" class="text">${edited ? item.mark.text : item.rationale}</p>
        ${edited && html`<details><summary>As it was</summary><p class="text">${item.rationale}</p></details>`}
        <div class="buttons">${this.button("accept", "Accept", "a", "")}${this.button("edit", "Edit", "e")}
          ${this.button("reject", "Reject", "r", "contrast")}</div>`;
    }
    const save = (event) => { event.preventDefault(); this.mark("edit", draft); };
    return html`<form onSubmit=${save}>
      <label for="draft">Rationale, edited
        <textarea id="draft" rows="8" maxlength="4000" value=${draft} onInput=${(e) => this.setState({ draft: e.target.value })} /></label>
      <div class="buttons"><button type="submit" id="save" disabled=${this.state.busy || !draft.trim()}>Save <kbd>Ctrl</kbd>+<kbd>Enter</kbd></button>
        <button type="button" id="cancel" class="secondary outline" onClick=${() => this.cancel()}>Cancel <kbd>Esc</kbd></button></div></form>`;
  }

  item() {
    const { item, zoomed } = this.state;
    const about = [item.modality, item.organ].filter(Boolean).join(", ");
    const hinted = item.status === "hinted" && " The teacher was told the answer.";
    return html`<div class="item">
      <figure><div id="frame" class=${zoomed ? "frame zoomed" : "frame"} tabindex="0" role="group" aria-label="Image, in a frame that scrolls when it is zoomed">
        <img id="image" src=${`/api/items/${item.place}/image`} alt=${`Image of question ${item.place + 1}`} /></div>
        <figcaption class="buttons">${about} ${this.button("zoom", zoomed ? "Fit" : "Zoom", "z")}</figcaption></figure>
      <article aria-live="polite">
        <h2>Question ${item.place + 1} of ${item.total}</h2>
        <p id="question" class="text">${item.question}</p>
        ${item.options && html`<p class="options">Options: ${item.options.join(" · ")}</p>`}
        <p id="answer" class="text">Answer: <strong>${item.answer}</strong></p>
        ${this.rationale()}
        <p class="source">${item.source ? `Written by ${item.source}.` : "It came with the data."}${hinted}
          ${item.mark && html` <span id="mark">${SAID[item.mark.decision]} by you on ${item.mark.at.slice(0, 16).replace("T", " ")} UTC.</span>`}</p>
      </article></div>`;
  }

  render() {
    const { about, item, error, said } = this.state;
    const { marked, total, open } = item ?? about ?? { marked: 0, total: 0, open: null };
    return html`
      <header><h1>Review of rationales</h1>
        <p>${about && `Reviewer ${about.reviewer}. `}Is what is written true of the image, and does it lead to the answer? Marks stay
          on this machine, in ${about?.out}/review.</p>
        <label for="progress">${marked} of ${total} marked<progress id="progress" value=${marked} max=${total || 1} /></label></header>
      <main>
        <p id="said" role="status">${said}</p>
        ${error && html`<p class="error" role="alert" id="error">${error}</p>`}
        ${about && !about.total && html`<p>There is no rationale to be reviewed.</p>`}
        ${item && open === null && html`<p id="done"><strong>All are marked.</strong> <code>rarl data review ${about?.out} --apply
          NEW.parquet</code> reads the marks back; any of them can still be changed here.</p>`}
        ${item && this.item()}
        ${item && html`<nav aria-label="Other rationales"><div class="buttons">${this.button("previous", "Previous", "ArrowLeft")}
          ${this.button("next", "Next", "ArrowRight")}${this.button("open", "Next without a mark", "n")}</div></nav>`}
      </main>`;
  }
}

render(html`<${App} />`, document.body);
