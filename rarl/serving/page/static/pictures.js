// The images of a question, side by side in the order in which the model is shown them: each can be labelled, moved and removed.
import { h } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

const html = htm.bind(h);
const ACCEPTED = ".png,.jpg,.jpeg,.tif,.tiff,.dcm,image/png,image/jpeg,image/tiff,application/dicom";
const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

// `onMove` takes a place and -1 or 1, `onRemove` a place, `onLabel` a place and a text.
export function Pictures({ pictures, replies, loading, over, said, onFiles, onOver, onMove, onRemove, onLabel }) {
  const drop = (event) => { event.preventDefault(); onOver(false); onFiles([...event.dataTransfer.files]); };
  const choose = (event) => { onFiles([...event.target.files]); event.target.value = ""; };
  return html`<div onDrop=${drop} onDragOver=${(event) => { event.preventDefault(); onOver(true); }} onDragLeave=${() => onOver(false)}>
    <label class=${over ? "drop over" : "drop"}>
      <input id="file" type="file" multiple accept=${ACCEPTED} onChange=${choose} />
      <strong>${pictures.length ? "Drop more images here, or choose them" : "Drop images here, or choose them"}</strong>
      <div>${loading ? "Reading …" : "PNG, JPEG, TIFF or DICOM; a question may have several, or none"}</div></label>
    ${pictures.length > 0 && html`<ol class="pictures" aria-label="Images, in the order in which the model is shown them">
      ${pictures.map((one, place) => html`<${Picture} key=${one.id} one=${one} place=${place} count=${pictures.length}
        replies=${pictures.length === 1 ? replies : []} onMove=${onMove} onRemove=${onRemove} onLabel=${onLabel} />`)}</ol>`}
    <p class="said" role="status">${said}</p></div>`;
}

// The arrow keys move an image from any of its buttons, which stay where a keyboard finds them: none is ever disabled.
function Picture({ one, place, count, replies, onMove, onRemove, onLabel }) {
  const about = `image ${place + 1} of ${count}, ${one.name}`;
  const keys = (event) => {
    if (!(event.key in MOVES)) return;
    event.preventDefault();
    onMove(place, MOVES[event.key]);
  };
  const button = (name, sign, does, blocked, act) => html`<button type="button" class="secondary" id=${`${name}-${one.id}`}
    aria-label=${`${does} ${about}`} title=${does} aria-disabled=${blocked ? "true" : "false"} onClick=${act} onKeyDown=${keys}>${sign}</button>`;
  return html`<li>
    <div class="stack"><img src=${one.shown} alt=${`Image ${place + 1} of ${count}: ${one.name}`} /><${Boxes} replies=${replies} /></div>
    <div class="name">${one.name}</div>
    <input type="text" aria-label=${`Label of ${about}`} placeholder="label" maxlength="200" value=${one.label}
      onInput=${(event) => onLabel(place, event.target.value)} />
    <div class="order" role="group" aria-label=${`Order of ${about}`}>
      ${button("earlier", "←", "Move to the left:", place === 0, () => onMove(place, -1))}
      ${button("later", "→", "Move to the right:", place === count - 1, () => onMove(place, 1))}
      ${button("remove", "✕", "Remove", false, () => onRemove(place))}</div></li>`;
}

// The boxes of the replies over the image, and what they looked at closely; the sides of the image are 1.
function Boxes({ replies }) {
  const drawn = replies.flatMap(({ result }, index) =>
    [...(result?.boxes ?? []), ...(result?.look ? [{ ...result.look.detail, label: "looked at closely" }] : [])].map((box) => html`<rect class=${index ? "second" : "first"} x=${Math.min(box.x1, box.x2)}
      y=${Math.min(box.y1, box.y2)} width=${Math.abs(box.x2 - box.x1)} height=${Math.abs(box.y2 - box.y1)}
      vector-effect="non-scaling-stroke"><title>${box.label}</title></rect>`));
  return drawn.length > 0 && html`<svg class="boxes" viewBox="0 0 1 1" preserveAspectRatio="none" role="img"
    aria-label=${`${drawn.length} boxes over the image`}>${drawn}</svg>`;
}
