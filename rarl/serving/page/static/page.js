// The page: one form, one or two replies beside each other, and a history that never leaves this browser.
import { h, render, Component } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";
import { about, ask, preview, readFile, thumbnail } from "./api.js";
import { addToHistory, clearHistory, readHistory } from "./history.js";

const html = htm.bind(h);
const percent = (share) => `${Math.round(share * 100)} %`;

class App extends Component {
  constructor() {
    super();
    this.state = {
      key: sessionStorage.getItem("rarl-key") || "", needsKey: false, service: null, error: "", file: null, shown: "",
      question: "", options: "", reference: "", first: "", second: "", samples: 5, replies: [], busy: false,
      over: false, boxes: false, history: readHistory(),
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

  async choose(file) {
    if (!file) return;
    this.stop?.abort(); // what is still being said is about the image before
    this.setState({ file: null, shown: "", error: "", replies: [] });
    try {
      const image = await readFile(file, this.state.service?.limits.image_bytes);
      this.setState({ shown: await preview(image, this.state.key), file: { name: file.name, image } });
    } catch (error) {
      this.setState({ error: `${file.name}: ${error.message}` });
    }
  }

  async submit(event) {
    event.preventDefault();
    const { file, question, first, second, key } = this.state;
    if (!file) return this.setState({ error: "Choose an image first." });
    if (!question.trim()) return this.setState({ error: "Write a question first." });
    const names = second ? [first, second] : [first];
    this.stop = new AbortController();
    this.setState({ busy: true, error: "", replies: names.map((name) => ({ name, text: "", result: null, error: "" })) });
    await Promise.all(names.map((name, index) => this.one(name, index, file, key)));
    this.setState({ busy: false });
    this.keep(file);
  }

  async one(adapter, index, file, key) {
    const change = (changes) =>
      this.setState(({ replies }) => ({ replies: replies.map((r, i) => (i === index ? { ...r, ...changes(r) } : r)) }));
    const { question, options, reference, samples, boxes } = this.state;
    const body = { image: file.image, question: question.trim(), adapter, samples: Number(samples), stream: true };
    const listed = options.split("\n").map((one) => one.trim()).filter(Boolean);
    if (listed.length) body.options = listed;
    if (boxes) body.boxes = true;
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

  async keep(file) {
    const answers = this.state.replies.filter((r) => r.result)
      .map((r) => ({ adapter: r.name, answer: r.result.answer, confidence: r.result.confidence }));
    if (!answers.length) return;
    const entry = { at: Date.now(), question: this.state.question, answers, picture: await thumbnail(this.state.shown) };
    this.setState({ history: addToHistory(entry) });
  }

  field(name, label, props = {}, kind = "input") {
    const onInput = (event) => this.setState({ [name]: event.target.value });
    return html`<label for=${name}>${label}<${kind} id=${name} value=${this.state[name]} onInput=${onInput} ...${props} /></label>`;
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

  drop() {
    const { over, shown, file, replies } = this.state;
    const take = (event) => { event.preventDefault(); this.setState({ over: false }); this.choose(event.dataTransfer.files[0]); };
    return html`<label class=${over ? "drop over" : "drop"} onDrop=${take}
        onDragOver=${(e) => { e.preventDefault(); this.setState({ over: true }); }} onDragLeave=${() => this.setState({ over: false })}>
      <input id="file" type="file" accept=".png,.jpg,.jpeg,.tif,.tiff,.dcm,image/png,image/jpeg,image/tiff,application/dicom"
        onChange=${(e) => { this.choose(e.target.files[0]); e.target.value = ""; }} />
      ${shown ? html`<div class="stack"><img id="shown" src=${shown} alt=${`The chosen image, ${file?.name}`} />
        <${Boxes} replies=${replies} /></div>` : html`<strong>Drop an image here, or choose one</strong>`}
      <div>${file ? file.name : "PNG, JPEG, TIFF or DICOM"}</div></label>`;
  }

  form() {
    const { service, busy } = this.state;
    return html`<form id="ask" onSubmit=${(event) => this.submit(event)}><div class="ask">
      <div>${this.drop()}</div>
      <div>
        ${this.field("question", "Question", { maxlength: 2000, placeholder: "Is there a lesion?" })}
        ${this.field("options", "Options, if it has any, one to a line", { rows: 3, placeholder: "left\nright, or both" }, "textarea")}
        ${service?.judge && this.field("reference", "Right answer, to have the judge compare (optional)", { maxlength: 2000 })}
        <label for="boxes"><input id="boxes" type="checkbox" role="switch" checked=${this.state.boxes}
          onChange=${(event) => this.setState({ boxes: event.target.checked })} /> Ask for boxes</label>
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

// The boxes of the replies over the image; the sides of the image are 1.
function Boxes({ replies }) {
  const drawn = replies.flatMap(({ result }, index) =>
    (result?.boxes ?? []).map((box) => html`<rect class=${index ? "second" : "first"} x=${Math.min(box.x1, box.x2)}
      y=${Math.min(box.y1, box.y2)} width=${Math.abs(box.x2 - box.x1)} height=${Math.abs(box.y2 - box.y1)}
      vector-effect="non-scaling-stroke"><title>${box.label}</title></rect>`));
  return drawn.length > 0 && html`<svg class="boxes" viewBox="0 0 1 1" preserveAspectRatio="none" role="img"
    aria-label=${`${drawn.length} boxes over the image`}>${drawn}</svg>`;
}

function Reply({ reply }) {
  const { name, text, result, error } = reply;
  const [thinking] = (text.split("<think>")[1] ?? text).split("</think>");
  return html`<article class="reply"><header>${name}</header>
    <h2 hidden>${name}</h2>
    <div class="thinking" tabindex="0" aria-label="Thinking">${result?.thinking ?? thinking.replace(/<\/?answer>/g, " ")}</div>
    <div role="status">${error && html`<p class="error">${error}</p>`}
    ${result && html`<p class="answer">Answer: <strong>${result.answer}</strong></p>
      <p class="figures">${result.confidence === null ? "One sample." : `${percent(result.confidence)} of ${result.samples.length} samples agree.`}
      ${" "}${result.tokens.completion} tokens. <span title="Name and content of the adapter">${result.version}</span></p>
      ${result.verdict && html`<${Verdict} verdict=${result.verdict} />`}`}</div></article>`;
}

function Verdict({ verdict }) {
  if (verdict.status !== "scored") return html`<p class="verdict">The judge: ${verdict.status}. ${verdict.reason}</p>`;
  const explanation = verdict.explanation === null ? "" : `, explanation ${percent(verdict.explanation)}`;
  return html`<p class="verdict">The judge: correctness ${verdict.correctness} of 3${explanation}. ${verdict.reason}</p>`;
}

function History({ entries, onClear }) {
  return html`<section class="history"><h2>Asked before</h2><p>Kept in this browser alone.
    ${" "}<button type="button" class="secondary" onClick=${onClear}>Clear</button></p>
    <ul>${entries.map((one) => html`<li key=${one.at}>${one.picture && html`<img src=${one.picture} alt="" />`}
      ${one.question} – ${one.answers.map((a) => `${a.adapter}: ${a.answer}`).join("; ")}</li>`)}</ul></section>`;
}

render(html`<${App} />`, document.body);
