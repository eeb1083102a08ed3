// Requests to the service with its API key, and its errors in words.

const KEY = "videolavit-key";
const box = document.getElementById("key-box"), field = document.getElementById("key");
field.value = sessionStorage.getItem(KEY) || "";
box.hidden = !field.value; // until the service asks for a key

export function onKeyChange(call) {
  field.addEventListener("change", () => { sessionStorage.setItem(KEY, field.value.trim()); call(); });
}

// Answer to a request. Raises an Error whose message says what happened and what to do.
export async function request(path, options = {}) {
  const headers = new Headers(options.headers), key = field.value.trim();
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let answer;
  try { answer = await fetch(path, { ...options, headers }); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Check that it runs and that you are connected, then try again.");
  }
  if (answer.ok) return answer;
  const problem = new Error(await words(answer, key));
  problem.status = answer.status;
  throw problem;
}

// Job of a request for a video, which is sent again where its answer is lost: its key keeps it from being made twice.
export async function send(path, body, signal) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const headers = { "Idempotency-Key": Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("") };
  for (let left = 2; ; left--) {
    try { return await (await request(path, { method: "POST", headers, body, signal })).json(); }
    catch (error) {
      if (error.status || signal.aborted || !left) throw error;
      await new Promise(done => setTimeout(done, 1000));
    }
  }
}

async function words(answer, key) {
  if (answer.status === 401) {
    if (box.hidden || !box.open) { box.hidden = false; box.open = true; field.focus(); }
    return key ? "The service does not accept this API key. Enter another one above."
               : "This service needs an API key. Enter it above.";
  }
  let message = `The service answered with status ${answer.status}`, code = ""; // of a proxy in front of it
  try {
    const { error } = await answer.json();
    message = sentence(error.message);
    code = error.code;
  } catch { /* not the service's own */ }
  const seconds = Number(answer.headers.get("Retry-After"));
  if (answer.status === 413) return `Too much to send at once: ${message.charAt(0).toLowerCase()}${message.slice(1)}. Choose a smaller or a shorter file.`;
  if (code === "context_length_exceeded") return `${message}. Begin a new conversation, or ask about less.`;
  if (seconds) return `${message}. Wait ${seconds} ${seconds === 1 ? "second" : "seconds"} first.`;
  return `${message}.`;
}

export const sentence = text => text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");

export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(`${sentence(parsed.error.message)}.`);
      yield parsed;
    }
  }
}
