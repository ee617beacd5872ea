// The page: one form, one or two replies beside each other, and a history that never leaves this browser.
import { h, render, Component } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";
import { about, ask, preview, readFile, thumbnail } from "./api.js";
import { addToHistory, clearHistory, readHistory } from "./history.js";
import { Pictures } from "./pictures.js";

const html = htm.bind(h);
const percent = (share) => `${Math.round(share * 100)} %`;

class App extends Component {
  constructor() {
    super();
    this.state = {
      key: sessionStorage.getItem("rarl-key") || "", needsKey: false, service: null, error: "", pictures: [], loading: 0, said: "",
      question: "", options: "", reference: "", first: "", second: "", samples: 5, replies: [], busy: false,
      over: false, boxes: false, look: false, history: readHistory(),
    };
  }

  componentDidMount() { this.connect(); }

  async connect() {
    try {
      const service = await about(this.state.key);
      sessionStorage.setItem("rarl-key", this.state.key);
      this.setState({ service, needsKey: false, error: "", first: service.default, samples: service.samples });
    } catch (error) {
      this.setState({ needsKey: error.status === 401, error: error.status === 401 && !this.state.key ? "" : error.message });
    }
  }

  // Another question from now on: what was said, and is still being said, is about the images before.
  change(pictures, said = "", then = undefined) {
    this.stop?.abort();
    this.setState({ pictures, said, replies: [] }, then);
  }

  // One file after the other, so that the images stand in the order of the files.
  async add(files) {
    this.setState(({ loading }) => ({ loading: loading + files.length, error: "" }));
    this.adding = (this.adding ?? Promise.resolve()).then(async () => {
      for (const file of files) {
        try {
          await this.addOne(file);
        } catch (error) {
          this.setState({ error: `${file.name}: ${error.message}` });
        }
        await new Promise((done) => this.setState(({ loading }) => ({ loading: loading - 1 }), done));
      }
    });
  }

  async addOne(file) {
    const { pictures, service } = this.state;
    const { images, image_bytes: most } = service?.limits ?? {};
    if (pictures.length >= images) throw new Error(`a question may have ${images} images here`);
    const size = pictures.reduce((sum, one) => sum + one.size, file.size);
    if (size > most) throw new Error(`the images are larger than ${Math.floor(most / 2 ** 20)} MiB together`);
    const image = await readFile(file);
    const shown = await preview(image, this.state.key);
    this.added = (this.added ?? 0) + 1;
    const one = { id: this.added, name: file.name, size: file.size, label: "", image, shown };
    this.change([...this.state.pictures, one], `${file.name} is image ${this.state.pictures.length + 1}.`);
  }

  move(place, by) {
    const pictures = [...this.state.pictures];
    if (!(place + by in pictures)) return;
    const focused = document.activeElement?.id; // a browser takes the focus from what is moved
    const [moved] = pictures.splice(place, 1);
    pictures.splice(place + by, 0, moved);
    this.change(pictures, `${moved.name} is image ${place + by + 1} of ${pictures.length} now.`, () => document.getElementById(focused)?.focus());
  }

  remove(place) {
    const pictures = this.state.pictures.filter((_, at) => at !== place);
    const { name, shown } = this.state.pictures[place];
    const next = pictures[place] ?? pictures[place - 1];
    URL.revokeObjectURL(shown);
    this.change(pictures, `${name} is removed.`, () => document.getElementById(next ? `remove-${next.id}` : "file").focus());
  }

  async submit(event) {
    event.preventDefault();
    const { pictures, question, first, second, key, loading } = this.state;
    if (loading) return this.setState({ error: "An image is still being read." });
    const labelled = pictures.filter((one) => one.label.trim()).length;
    if (labelled && labelled < pictures.length) return this.setState({ error: "Label each of the images, or none." });
    if (!question.trim()) return this.setState({ error: "Write a question first." });
    const names = second ? [first, second] : [first];
    this.stop = new AbortController();
    this.setState({ busy: true, error: "", replies: names.map((name) => ({ name, text: "", result: null, error: "" })) });
    await Promise.all(names.map((name, index) => this.one(name, index, key)));
    this.setState({ busy: false });
    this.keep();
  }

  async one(adapter, index, key) {
    const change = (changes) =>
      this.setState(({ replies }) => ({ replies: replies.map((r, i) => (i === index ? { ...r, ...changes(r) } : r)) }));
    const { pictures, question, options, reference, samples, boxes, look } = this.state;
    const images = pictures.map((one) => one.image);
    const body = { images, question: question.trim(), adapter, samples: Number(samples), stream: true };
    if (pictures.some((one) => one.label.trim())) body.image_labels = pictures.map((one) => one.label.trim());
    const listed = options.split("\n").map((one) => one.trim()).filter(Boolean);
    if (listed.length) body.options = listed;
    if (boxes) body.boxes = true;
    if (look) body.look = true;
    if (reference.trim()) body.reference = reference.trim();
    try {
      for await (const event of ask(body, key, this.stop.signal)) {
        if (event.type === "delta") change((r) => ({ text: r.text + event.text }));
        if (event.type === "result") change(() => ({ result: event }));
      }
    } catch (error) {
      change(() => ({ error: error.name === "AbortError" ? "Stopped." : error.message }));
    }
  }

  async keep() {
    const answers = this.state.replies.filter((r) => r.result)
      .map((r) => ({ adapter: r.name, answer: r.result.answer, confidence: r.result.confidence }));
    if (!answers.length) return;
    const shown = await Promise.all(this.state.pictures.map((one) => thumbnail(one.shown)));
    const entry = { at: Date.now(), question: this.state.question, answers, pictures: shown };
    this.setState({ history: addToHistory(entry) });
  }

  field(name, label, props = {}, kind = "input") {
    const onInput = (event) => this.setState({ [name]: event.target.value });
    return html`<label for=${name}>${label}<${kind} id=${name} value=${this.state[name]} onInput=${onInput} ...${props} /></label>`;
  }

  // Turning one on turns the other off.
  switch(name, label, other) {
    const onChange = (event) => this.setState({ [name]: event.target.checked, ...(event.target.checked ? { [other]: false } : {}) });
    return html`<label for=${name}><input id=${name} type="checkbox" role="switch" checked=${this.state[name]} onChange=${onChange} /> ${label}</label>`;
  }

  adapterChoice(name, label, none) {
    const names = this.state.service ? [this.state.service.base, ...this.state.service.adapters] : [];
    return html`<label for=${name}>${label}
      <select id=${name} value=${this.state[name]} onChange=${(e) => this.setState({ [name]: e.target.value })}>
        ${none && html`<option value="">${none}</option>`}
        ${names.map((one) => html`<option value=${one} selected=${one === this.state[name]}>${one}</option>`)}
      </select></label>`;
  }

  keyForm() {
    const go = (event) => { event.preventDefault(); this.connect(); };
    return html`<form onSubmit=${go} class="key">
      ${this.field("key", "API key of this server", { type: "password", autocomplete: "off" })}
      <button type="submit">Continue</button></form>`;
  }

  pictures() {
    const { pictures, replies, loading, over, said } = this.state;
    return html`<${Pictures} ...${{ pictures, replies, loading, over, said }}
      onFiles=${(files) => this.add(files)} onOver=${(inside) => this.setState({ over: inside })}
      onMove=${(place, by) => this.move(place, by)} onRemove=${(place) => this.remove(place)}
      onLabel=${(place, label) => this.change(pictures.map((one, at) => (at === place ? { ...one, label } : one)))} />`;
  }

  form() {
    const { service, busy } = this.state;
    return html`<form id="ask" onSubmit=${(event) => this.submit(event)}><div class="ask">
      <div>${this.pictures()}</div>
      <div>
        ${this.field("question", "Question", { maxlength: 2000, placeholder: "Is there a lesion?" })}
        ${this.field("options", "Options, if it has any, one to a line", { rows: 3, placeholder: "left\nright, or both" }, "textarea")}
        ${service?.judge && this.field("reference", "Right answer, to have the judge compare (optional)", { maxlength: 2000 })}
        ${this.switch("boxes", "Ask for boxes", "look")}
        ${this.switch("look", "Look twice: first where, then closely", "boxes")}
        <div class="pair">${this.adapterChoice("first", "Ask")}${this.adapterChoice("second", "Compare with", "nothing")}</div>
        ${this.field("samples", "Samples", { type: "number", min: 1, max: service?.limits.replies })}
        <div class="buttons"><button type="submit" disabled=${busy || !service}>${busy ? "Asking …" : "Ask"}</button>
        ${busy && html`<button type="button" class="secondary" onClick=${() => this.stop.abort()}>Stop</button>`}</div>
      </div></div></form>`;
  }

  render() {
    const { needsKey, error, replies, history, busy } = this.state;
    return html`
      <header><h1>RARL</h1>
        <p class="notice" role="note"><strong>A research tool. Not for diagnosis.</strong> Its answers may be wrong, and its
        reasons made up. Images are sent to this server alone, and not kept there.</p></header>
      <main>${needsKey ? this.keyForm() : this.form()}
        ${error && html`<p class="error" role="alert" id="error">${error}</p>`}
        <section class="pair replies" aria-label="Replies" aria-busy=${busy ? "true" : "false"}>
          ${replies.map((reply) => html`<${Reply} key=${reply.name} reply=${reply} />`)}</section>
        ${history.length > 0 && html`<${History} entries=${history} onClear=${() => this.setState({ history: clearHistory() })} />`}
      </main>`;
  }
}

function Reply({ reply }) {
  const { name, text, result, error } = reply;
  const [thinking] = (text.split("<think>")[1] ?? text).split("</think>");
  return html`<article class="reply"><header>${name}</header>
    <h2 hidden>${name}</h2>
    <div class="thinking" tabindex="0" aria-label="Thinking">${result?.thinking ?? thinking.replace(/<\/?answer>/g, " ")}</div>
    <div role="status">${error && html`<p class="error">${error}</p>`}
    ${result && "look" in result && html`<${Look} look=${result.look} />`}
    ${result && html`<p class="answer">Answer: <strong>${result.answer}</strong></p>
      <p class="figures">${result.confidence === null ? "One sample." : `${percent(result.confidence)} of ${result.samples.length} samples agree.`}
      ${" "}${result.tokens.completion} tokens. <span title="Name and content of the adapter">${result.version}</span></p>
      ${result.verdict && html`<${Verdict} verdict=${result.verdict} />`}`}</div></article>`;
}

function Look({ look }) {
  if (look === null) return html`<p class="look">It named no place to look at closely.</p>`;
  return html`<figure class="look"><img src=${look.image} alt="What it looked at closely" />
    <figcaption>Looked at closely: ${look.box.label}</figcaption></figure>`;
}

function Verdict({ verdict }) {
  if (verdict.status !== "scored") return html`<p class="verdict">The judge: ${verdict.status}. ${verdict.reason}</p>`;
  const explanation = verdict.explanation === null ? "" : `, explanation ${percent(verdict.explanation)}`;
  return html`<p class="verdict">The judge: correctness ${verdict.correctness} of 3${explanation}. ${verdict.reason}</p>`;
}

function History({ entries, onClear }) {
  return html`<section class="history"><h2>Asked before</h2><p>Kept in this browser alone.
    ${" "}<button type="button" class="secondary" onClick=${onClear}>Clear</button></p>
    <ul>${entries.map((one) => html`<li key=${one.at}>${(one.pictures ?? []).map((url) => html`<img src=${url} alt="" />`)}
      ${one.question} – ${one.answers.map((a) => `${a.adapter}: ${a.answer}`).join("; ")}</li>`)}</ul></section>`;
}

render(html`<${App} />`, document.body);
