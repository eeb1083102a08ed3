// The page: tabs, the forms for videos and pictures, and what the service tells about its model.

import { onKeyChange, request, send } from "./api.js";
import { attach, startChat } from "./chat.js";
import { $, onSubmit, picker } from "./forms.js";
import { addJob, refresh, startJobs } from "./jobs.js";

let model = "";

// ---- tabs; the address names the open one, by a name that no element has, since the browser would jump to it ----
const tabs = [...document.querySelectorAll("[role=tab]")];
const nameOf = tab => tab.id.slice("tab-".length);

function open(name, focus = false) {
  const chosen = tabs.find(tab => nameOf(tab) === name) || tabs[0];
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
  if (focus) chosen.focus();
  history.replaceState(null, "", `${location.pathname}${location.search}#${nameOf(chosen)}`);
}

tabs.forEach((tab, place) => {
  tab.onclick = () => open(nameOf(tab));
  tab.onkeydown = event => {
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    open(nameOf(tabs.at(next % tabs.length)), true);
  };
});
addEventListener("hashchange", () => open(location.hash.slice(1)));

// ---- forms ----
const firstFrame = picker($("video-picture")), source = picker($("reconstruct-video"));

onSubmit($("video-form"), async signal => {
  const prompt = $("video-prompt").value.trim(), body = new FormData();
  if (!prompt && !firstFrame.file) {
    $("video-prompt").focus();
    throw new Error("Describe the video, or choose a picture that it starts with.");
  }
  body.set("prompt", prompt);
  if ($("video-seconds").selectedIndex > 0) body.set("seconds", $("video-seconds").value); // the first is the default
  if ($("video-seed").value) body.set("seed", $("video-seed").value);
  if (firstFrame.file) body.set("input_reference", firstFrame.file);
  await addJob(await send("v1/videos", body, signal));
  return "In the queue. It is made even if you leave this page.";
});

onSubmit($("reconstruct-form"), async signal => {
  const file = source.file, body = new FormData();
  if (!file) { $("reconstruct-video").focus(); throw new Error("Choose a video first."); }
  body.set("video", file);
  await addJob(await send("v1/videos/reconstruct", body, signal), file);
  return "In the queue. It is made even if you leave this page.";
});

onSubmit($("picture-form"), async (signal, say) => {
  const prompt = $("picture-prompt").value.trim(), body = { prompt };
  if (!prompt) { $("picture-prompt").focus(); throw new Error("Describe the picture first."); }
  if ($("picture-seed").value) body.seed = Number($("picture-seed").value);
  say("Making the picture …");
  const headers = { "Content-Type": "application/json" };
  const answer = await request("v1/images/generations", { method: "POST", headers, body: JSON.stringify(body), signal });
  const [{ b64_json: data, seed }] = (await answer.json()).data;
  const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
  showPicture(prompt, seed, new File([bytes], `picture-${seed}.png`, { type: "image/png" }));
  return "";
});

function showPicture(prompt, seed, file) {
  const item = $("made-picture").content.firstElementChild.cloneNode(true), part = name => item.querySelector(name);
  part("img").src = part(".save").href = URL.createObjectURL(file);
  part("img").alt = prompt;
  part("figcaption").textContent = `“${prompt}” · seed ${seed}`;
  part(".save").download = file.name;
  part(".start").onclick = () => { firstFrame.set(file); open("video"); $("video-prompt").focus(); };
  part(".ask").onclick = () => { open("chat"); attach(file); };
  $("pictures").prepend(item);
}

// ---- what the service tells about its model ----
async function showModel() {
  try {
    const found = (await (await request("v1/models")).json()).data[0];
    model = $("model").textContent = found.id;
    $("key-box").open = $("key-box").contains(document.activeElement);
    showLengths(found.video_seconds);
    document.querySelectorAll(".examples").forEach(place => showExamples(place, found.examples[place.dataset.kind]));
  } catch { $("model").textContent = "not known"; } // the list of jobs tells why
}

function showLengths(lengths) {
  const select = $("video-seconds"), before = select.selectedIndex;
  select.replaceChildren(...lengths.map(seconds => new Option(`${Number(Number(seconds).toFixed(1))} seconds`, seconds)));
  if (before > 0) select.selectedIndex = before;
}

function showExamples(place, prompts) {
  place.hidden = !prompts.length;
  place.replaceChildren(...prompts.map(prompt => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = prompt;
    button.onclick = () => { const field = $(place.dataset.for); field.value = prompt; field.focus(); };
    return button;
  }));
}

open(location.hash.slice(1));
startChat(async () => { if (!model) await showModel(); return model; });
startJobs({
  back: () => { if (!model) showModel(); },
  ask: (job, video) => { open("chat"); attach(new File([video], `${job.id}.mp4`, { type: "video/mp4" })); },
  again: job => {
    open("video");
    $("video-prompt").value = job.prompt; $("video-seconds").value = job.seconds; $("video-seed").value = job.seed;
    $("video-prompt").focus();
  },
});
showModel();
onKeyChange(() => { showModel(); refresh(); });
