// The page of `captioning app`. A photograph is sent and captioned (Errand); the caption's words light up where
// the model looked (light). Nothing is loaded from or sent to anywhere but the page's own server.
"use strict";

const settings = JSON.parse(document.getElementById("settings").textContent);
const at = (id) => document.getElementById(id);
const QUEUE = "gradio/gradio_api/queue"; // gradio's own protocol: join, then read events
const TOUCH = matchMedia("(pointer: coarse)").matches;

let photograph = null; // the last file that got a caption
let pending = null; // the errand that runs
let shown = null; // the answer whose words are shown
let pinned = -1; // the word that stays lit

// ---- the photograph: file, drop, paste, camera, example ----

function choose(file) {
  if (!file) return;
  if (file.size > settings.maxBytes) {
    return fail(`The file has ${Math.ceil(file.size / 1e6)} MB; up to ${Math.floor(settings.maxBytes / 1e6)} MB can be sent.`);
  }
  at("options").reset();
  decoderChanged();
  caption({ file });
}

function show(url) {
  const image = at("photograph");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.onload = () => (at("figure").hidden = false);
  image.onerror = () => (at("figure").hidden = true); // until the server sends a picture that browsers know
  image.src = url;
}

function handed(data) {
  const file = [...data.files].find((one) => one.type.startsWith("image/")) ?? data.files[0];
  if (file) return choose(file);
  if (/^(https?|data):/.test(data.getData("text/uri-list") || data.getData("text/plain").trim())) {
    fail("That is a link, not a file. Save the picture first, then drop or choose the file.");
  }
}

async function openCamera() {
  // Browsers give pages a camera only over https or from this computer; telephones have an app of their own.
  if (TOUCH || !navigator.mediaDevices?.getUserMedia) return at("snapshot").click();
  const video = at("viewfinder").querySelector("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    at("viewfinder").showModal();
  } catch (error) {
    fail(`The camera cannot be used (${error.message || error.name}).`);
  }
}

function closeCamera() {
  const video = at("viewfinder").querySelector("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

function takePhotograph() {
  const video = at("viewfinder").querySelector("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  at("viewfinder").close();
  canvas.toBlob((blob) => choose(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
}

// ---- asking the server ----

// A refusal that sending the same again would not change.
class Refusal extends Error {}

class Errand {
  constructor(report) {
    this.report = report; // called with what is going on
    this.aborter = new AbortController();
    this.stopped = false;
  }

  stop() {
    this.stopped = true;
    this.aborter.abort();
    this.events?.close(); // gradio then takes the request out of the queue
  }

  // Sends a file and returns the answer of Page.caption; throws an Error with a sentence for the user.
  async run(file, { decoder, required = "", wording = "" }) {
    this.report("Sending the photograph …");
    const { token } = await this.post("photograph", file);
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    const session = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const data = [token, decoder, required, wording];
    await this.post(`${QUEUE}/join`, JSON.stringify({ data, fn_index: 0, session_hash: session }), "application/json");
    const answer = await this.read(`${QUEUE}/data?session_hash=${session}`);
    if (answer.error) throw new Refusal(sentence(answer.error));
    return answer;
  }

  async post(path, body, type = "application/octet-stream") {
    let reply;
    try {
      reply = await fetch(path, { method: "POST", body, headers: { "Content-Type": type }, signal: this.aborter.signal });
    } catch {
      throw new Error("The captioner does not answer. Is it still running?");
    }
    const content = await reply.json().catch(() => ({}));
    if (reply.ok) return content;
    if (reply.status === 503) throw new Error("Too many photographs are waiting; try again in a minute.");
    throw new Refusal(sentence(content.error ?? `the captioner refuses the photograph (${reply.status})`));
  }

  read(path) {
    return new Promise((resolve, reject) => {
      const events = (this.events = new EventSource(path));
      const end = (finish, value) => (events.close(), finish(value));
      events.onerror = () => end(reject, new Error("The connection to the captioner was lost."));
      events.onmessage = (event) => {
        const message = JSON.parse(event.data);
        if (message.msg === "estimation" && message.rank > 0) this.report(`Waiting, ${message.rank} before yours …`);
        if (message.msg === "estimation" && message.rank === 0) this.report("Waiting, yours is next …");
        if (message.msg === "process_starts") this.report("Looking at the photograph …");
        if (message.msg === "unexpected_error") end(reject, new Error("The captioner stopped. Is it still running?"));
        if (message.msg === "process_completed") {
          if (message.success) end(resolve, message.output.data[0]);
          else end(reject, new Error("Something went wrong; the captioner's terminal says what."));
        }
      };
    });
  }
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

// Captions a file, the photograph of before if none is given; with a wording, shows where the model looks for
// that one and keeps the list of captions.
async function caption({ file = photograph, wording = "" }) {
  pending?.stop();
  const errand = (pending = new Errand((text) => (at("status").textContent = text)));
  fail(null);
  busy(true);
  pin(-1);
  if (file !== photograph) {
    at("answer").hidden = true;
    show(URL.createObjectURL(file));
    arrange(true);
  }
  try {
    const answer = await errand.run(file, { decoder: at("decoder").value, required: at("required").value, wording });
    if (errand.stopped) return;
    // What the browser shows of a JPEG is sharper, and the same way up.
    if (file.type !== "image/jpeg" || at("figure").hidden) show(answer.preview);
    photograph = file;
    if (!wording) list([answer, ...answer.alternatives]);
    showAnswer(answer);
  } catch (error) {
    if (errand.stopped) return;
    fail(error.message, error instanceof Refusal ? null : () => caption({ file, wording }));
    // Back to what was there before.
    if (file !== photograph && shown) show(photograph.type === "image/jpeg" ? URL.createObjectURL(photograph) : shown.preview);
    at("answer").hidden = !shown;
  } finally {
    if (errand === pending) {
      busy(false);
      arrange(Boolean(shown));
    }
  }
}

function busy(yes) {
  at("figure").classList.toggle("busy", yes);
  at("result").setAttribute("aria-busy", yes);
  at("rewrite").disabled = yes;
  if (!yes) at("status").textContent = "";
}

function arrange(started) {
  document.body.classList.toggle("started", started);
  at("options").hidden = !shown;
  if (!started) at("figure").hidden = true;
  at("choose").textContent = started ? "Another photograph" : "Choose a photograph";
  at("camera").textContent = started ? "Camera" : "Use the camera";
}

// Says what went wrong, with a button where trying again may help; null takes it away.
function fail(text, again = null) {
  at("problem").hidden = !text;
  at("problem").querySelector("p").textContent = text ?? "";
  at("again").hidden = !again;
  at("again").onclick = again;
  if (text) at("problem").scrollIntoView({ block: "nearest" });
}

// ---- the answer ----

function showAnswer(answer) {
  shown = answer;
  const words = at("words");
  words.replaceChildren();
  answer.words.forEach((word, index) => {
    const button = document.createElement(answer.shades ? "button" : "span");
    button.textContent = word;
    button.classList.toggle("joined", answer.joined[index]); // a character, or a part of a word
    words.append(button);
    if (!answer.shades) return;
    button.type = "button";
    button.tabIndex = index ? -1 : 0; // one stop of the Tab key; the arrow keys go on from there
    button.ariaPressed = "false";
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && light(index));
    button.addEventListener("pointerleave", () => light(pinned));
    button.addEventListener("focus", () => (rove(index), light(index)));
    button.addEventListener("blur", () => light(pinned));
    button.addEventListener("click", () => pin(pinned === index ? -1 : index));
  });
  if (!answer.words.length) words.textContent = "(no words)";
  at("hint").textContent = !answer.shades
    ? "This model does not say where it looks."
    : TOUCH
      ? "Tap a word to see where the model looked."
      : "Point at a word, or move with the arrow keys, to see where the model looked; a click keeps it lit.";
  for (const button of at("alternatives").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.text === answer.text);
  }
  at("copied").textContent = "";
  pin(-1);
  at("answer").hidden = false;
  at("words").scrollIntoView({ block: "nearest" });
  at("spoken").textContent = `Caption: ${answer.text || "no words"}.`;
}

function list(captions) {
  at("others").hidden = captions.length < 2;
  at("alternatives").replaceChildren(
    ...captions.map(({ text, score }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.text = text;
      const number = document.createElement("span");
      number.className = "score";
      number.textContent = `${Math.round(score * 100)}%`;
      button.append(Object.assign(document.createElement("span"), { textContent: text || "(no words)" }), number);
      button.addEventListener("click", () => text !== shown?.text && caption({ wording: text }));
      item.append(button);
      return item;
    }),
  );
}

function rove(index) {
  [...at("words").children].forEach((button, other) => (button.tabIndex = other === index ? 0 : -1));
}

function pin(index) {
  pinned = index;
  [...at("words").children].forEach((button, other) => (button.ariaPressed = String(other === index)));
  light(index);
}

// Lights the photograph where the model looked for a word; -1 for no word.
function light(index) {
  const word = shown?.shades ? shown.words[index] : undefined;
  [...at("words").children].forEach((button, other) => button.classList.toggle("lit", other === index));
  at("light").classList.toggle("on", word !== undefined);
  at("place").textContent = word === undefined ? "" : `“${word}”: ${shown.places[index]}`;
  if (word !== undefined) at("light").style.backgroundImage = `url(${shown.shades[index]})`;
}

async function copy() {
  const text = sentence(shown.text || "A photograph");
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https the clipboard is closed to pages of other computers, but not to a selected text.
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
    at("copy").focus();
  }
  at("copied").textContent = done ? `Copied: ${text}` : `Copy it by hand: ${text}`;
}

// ---- wiring ----

function decoderChanged() {
  const chosen = settings.decoders.find(({ name }) => name === at("decoder").value);
  at("required").disabled = !chosen.required;
  at("required-hint").textContent = chosen.required
    ? `Up to six of the ${settings.numWords.toLocaleString("en")} words that the model knows.`
    : "This kind of caption takes no such words.";
}

at("privacy").textContent = settings.local
  ? "The photograph stays on this computer, and is deleted once it is captioned."
  : "The photograph goes only to the computer that runs this page, and is deleted once it is captioned.";
at("invitation").textContent = TOUCH ? "Choose a photograph, or take one" : "Drop a photograph here, or paste one";
at("decoder").append(...settings.decoders.map(({ name, label }) => new Option(label, name)));
decoderChanged();
at("decoder").addEventListener("change", decoderChanged);
at("choose").addEventListener("click", () => at("file").click());
at("camera").addEventListener("click", openCamera);
for (const id of ["file", "snapshot"]) {
  at(id).addEventListener("change", () => {
    choose(at(id).files[0]);
    at(id).value = ""; // so that choosing the same file again is noticed
  });
}
at("take").addEventListener("click", takePhotograph);
at("close").addEventListener("click", () => at("viewfinder").close());
at("viewfinder").addEventListener("close", closeCamera);
at("copy").addEventListener("click", copy);
at("options").addEventListener("submit", (event) => {
  event.preventDefault();
  caption({});
});

const examples = at("examples").querySelector(".row");
for (const path of settings.examples) {
  const name = path.replace(/^.*\/|\.\w+$/g, "");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.append(Object.assign(document.createElement("img"), { src: path, alt: `photograph: ${name}` }));
  button.addEventListener("click", async () => choose(new File([await (await fetch(path)).blob()], `${name}.jpg`, { type: "image/jpeg" })));
  examples.append(button);
}
at("examples").hidden = !settings.examples.length;

at("words").addEventListener("keydown", (event) => {
  const words = [...at("words").children];
  const index = words.indexOf(event.target);
  const next = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: words.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  words[Math.min(Math.max(next, 0), words.length - 1)].focus();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && shown && pin(-1));

let depth = 0; // dragenter and dragleave come for every element under the pointer
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", (depth = 0) > 0);
  handed(event.dataTransfer);
});
addEventListener("paste", (event) => event.target !== at("required") && handed(event.clipboardData));
