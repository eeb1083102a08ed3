// Parts that all forms of the page share: a state in words, a button that stops, and chosen files.

export const $ = id => document.getElementById(id);

export function tell(element, text, isError = false) {
  if (element.textContent !== text) element.textContent = text; // what did not change is not read aloud again
  element.classList.toggle("error", isError);
}

// Runs `work` when a form is sent; it gets a signal that the form's Stop button aborts, and `say`, which
// shows words; it returns the last words.
export function onSubmit(form, work) {
  const go = form.querySelector("[type=submit]"), stop = form.querySelector(".stop"), state = form.querySelector(".state");
  const show = isRunning => {
    const hadFocus = [go, stop].includes(document.activeElement);
    go.hidden = isRunning; stop.hidden = !isRunning;
    if (hadFocus) (isRunning ? stop : go).focus();
  };
  form.addEventListener("submit", async event => {
    event.preventDefault();
    if (go.hidden) return;
    const controller = new AbortController();
    stop.onclick = () => controller.abort();
    show(true);
    const say = words => tell(state, words);
    say("Sending …");
    try { say(await work(controller.signal, say)); }
    catch (error) {
      const stopped = controller.signal.aborted;
      tell(state, stopped ? "Stopped." : error.message, !stopped);
    }
    finally { show(false); }
  });
}

export function preview(kind, url) {
  const element = document.createElement(kind.startsWith("video") ? "video" : "img");
  if (element.tagName === "VIDEO") { element.controls = element.muted = element.playsInline = element.loop = true; }
  else element.alt = "";
  element.src = url;
  return element;
}

// Field for a file, which shows what was chosen.
export function picker(input) {
  let shown = null;
  function show() {
    if (shown) { URL.revokeObjectURL(shown.firstChild.src); shown.remove(); shown = null; }
    const file = input.files[0];
    if (!file) return;
    const remove = document.createElement("button");
    remove.type = "button"; remove.className = "quiet small"; remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.onclick = () => { set(null); input.focus(); };
    shown = document.createElement("div");
    shown.className = "chosen";
    shown.append(preview(file.type, URL.createObjectURL(file)), remove);
    input.after(shown);
  }
  function set(file) {
    const chosen = new DataTransfer();
    if (file) chosen.items.add(file);
    input.files = chosen.files;
    show();
  }
  input.addEventListener("change", show);
  return { set, get file() { return input.files[0]; } };
}
