// Conversation about pictures and videos, which is kept until the tab is closed.

import { events, request } from "./api.js";
import { $, onSubmit, picker, preview, tell } from "./forms.js";

const CONVERSATION = "videolavit-conversation", EMPTY = "(an empty answer)";
const MOST_TOKENS = 256; // of an answer, so that the next questions find space
const form = $("chat-form"), text = $("chat-text"), log = $("log"), state = form.querySelector(".state");
const attached = picker($("chat-file"));
const toEnd = new ResizeObserver(() => { log.scrollTop = log.scrollHeight; }); // also when pictures appear, and the tab
let turns = []; // {role, text, file: {name, type, url}, stopped}; a file that was too large to be kept has no url

// Begins the chat; `model` finds the name of the model.
export function startChat(model) {
  turns = JSON.parse(sessionStorage.getItem(CONVERSATION) || "[]");
  turns.forEach(show);
  text.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  $("chat-new").onclick = () => {
    turns = []; log.replaceChildren(); showLog(); tell(state, ""); sessionStorage.removeItem(CONVERSATION); text.focus();
  };
  onSubmit(form, async (signal, say) => ask(await model(), signal, say));
}

export function attach(file) {
  attached.set(file);
  text.focus();
}

async function ask(model, signal, say) {
  const file = attached.file, question = { role: "user", text: text.value.trim() };
  if (!question.text) { text.focus(); throw new Error("Write a question first."); }
  if (file) question.file = { name: file.name, type: file.type, url: await asDataUrl(file) };
  const answer = { role: "assistant", text: "" };
  const body = { model, stream: true, temperature: 0, max_tokens: MOST_TOKENS, messages: [...turns, question].map(asMessage) };
  const bubbles = [show(question), show(answer)], line = bubbles[1].querySelector(".text");
  line.textContent = "…";
  log.ariaBusy = "true"; // read aloud when it is whole
  text.value = "";
  attached.set(null);
  try {
    const headers = { "Content-Type": "application/json" };
    const stream = await request("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    say("Answering …");
    for await (const event of events(stream)) {
      signal.throwIfAborted(); // what has come in the meantime is not shown
      answer.text += event.choices[0]?.delta.content || "";
      line.textContent = answer.text || "…";
    }
    line.textContent = answer.text || EMPTY;
  } catch (error) {
    if (!answer.text) { // nothing was said: the question goes back to where it was written
      bubbles.forEach(bubble => bubble.remove());
      showLog();
      text.value = text.value || question.text;
      if (file && !attached.file) attached.set(file);
      throw error;
    }
    answer.stopped = true;
    bubbles[1].replaceWith(bubble(answer));
    turns.push(question, answer);
    keep();
    throw error;
  } finally { log.ariaBusy = "false"; }
  turns.push(question, answer);
  return keep();
}

function asMessage({ role, text, file }) {
  if (!file?.url) return { role, content: text };
  return { role, content: [{ type: "file", file: { filename: file.name, file_data: file.url } }, { type: "text", text }] };
}

const asDataUrl = file => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(new Error(`${file.name} cannot be read. Choose it again.`));
  reader.readAsDataURL(file);
});

// Keeps the conversation for a reload, the oldest files only as far as there is space; returns words if some are left out.
function keep() {
  const kept = turns.map(turn => ({ ...turn })), left = [];
  for (;;) {
    try { sessionStorage.setItem(CONVERSATION, JSON.stringify(kept)); break; }
    catch {
      const turn = kept.find(one => one.file?.url);
      if (!turn) return "This conversation is too long to be kept over a reload of the page.";
      left.push(turn.file.name);
      turn.file = { ...turn.file, url: null };
    }
  }
  return left.length ? `Too large to be kept over a reload of the page: ${left.join(", ")}.` : "";
}

function showLog() {
  const isEmpty = !log.children.length;
  log.hidden = $("chat-new").hidden = isEmpty;
  $("chat-hint").hidden = !isEmpty;
}

function show(turn) {
  const shown = bubble(turn);
  log.append(shown);
  showLog();
  return shown;
}

function bubble({ role, text, file, stopped }) {
  const element = document.createElement("div"), line = document.createElement("p");
  element.className = `turn ${role}`;
  toEnd.observe(element);
  line.className = "text";
  line.textContent = text || EMPTY;
  if (file?.url) element.append(preview(file.type, file.url));
  element.append(line);
  const note = stopped ? "Stopped" : file && !file.url ? `${file.name} was not kept: attach it again to ask about it` : file?.name;
  if (note) {
    const small = document.createElement("p");
    small.className = "hint";
    small.textContent = note;
    element.append(small);
  }
  return element;
}
