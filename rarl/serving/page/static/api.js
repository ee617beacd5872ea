// What the page asks the server, with the visitor's key.

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function request(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(`/v1${path}`, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server cannot be reached");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `the server answered ${response.status}`);
}

const posted = (body, signal) =>
  ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const about = async (key) => (await request("/about", key)).json();

// The file as base64. The server tells by its content what it is.
export async function readFile(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

// As the server decodes it: this shows DICOM too, and finds a bad file before a question is asked.
export async function preview(image, key) {
  const response = await request("/preview", key, posted({ image }));
  return URL.createObjectURL(await response.blob());
}

// Events of a reply as they come.
export async function* ask(body, key, signal) {
  const response = await request("/answer", key, posted(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const text = event.replace(/^data: /, "");
      if (text === "[DONE]") return;
      const parsed = JSON.parse(text);
      if (parsed.error) throw new Refused(500, parsed.error.message);
      yield parsed;
    }
  }
}

// 64 pixels high, for the history.
export async function thumbnail(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.height = 64;
  canvas.width = Math.max(1, Math.min(192, Math.round((64 * image.naturalWidth) / image.naturalHeight)));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.7);
}
