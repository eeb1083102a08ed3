// List of the video jobs that the service keeps for this key.

import { request, sentence } from "./api.js";
import { $, tell } from "./forms.js";

const OPEN = ["queued", "in_progress"];
const STEP = 10, MOST = 100, WAIT_MS = 700, WAIT_LOST_MS = 3000;

const cards = new Map(); // by the id of the job: its element, its state, and the addresses of its files
const originals = new Map(); // address of the video that a reconstruction was made from, by the id of its job
let shown = STEP, timer = 0, refreshing = 0, actions = {};

// Shows the list. `actions` are called with a job: `again`, and `ask`, also with its video; and `back` when the service
// answers again.
export function startJobs(given) {
  actions = given;
  $("jobs-more").onclick = () => { shown = Math.min(MOST, shown + STEP); refresh(); };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  return refresh();
}

// Shows a job that was just queued, and follows it.
export async function addJob(job, original = null) {
  if (original) originals.set(job.id, URL.createObjectURL(original));
  await refresh();
  cards.get(job.id)?.card.scrollIntoView({ block: "nearest" });
}

export async function refresh() {
  clearTimeout(timer);
  const mine = ++refreshing;
  try {
    const list = await (await request(`v1/videos?limit=${shown}`)).json();
    if (mine !== refreshing) return; // a later one is on its way
    if ($("jobs-state").classList.contains("error")) { tell($("jobs-state"), ""); actions.back(); }
    show(list);
    if (list.data.some(job => OPEN.includes(job.status))) timer = setTimeout(refresh, WAIT_MS);
  } catch (error) {
    if (mine !== refreshing) return;
    tell($("jobs-state"), error.message, true);
    if (error.status !== 401) timer = setTimeout(refresh, WAIT_LOST_MS);
    else { show({ data: [], has_more: false }); $("jobs-empty").hidden = true; }
  }
}

function show(list) {
  const ids = new Set(list.data.map(job => job.id));
  for (const [id, { card, urls }] of cards) {
    if (ids.has(id)) continue;
    card.remove();
    urls.forEach(URL.revokeObjectURL);
    cards.delete(id);
  }
  list.data.forEach((job, place) => {
    if (!cards.has(job.id)) cards.set(job.id, newCard(job));
    const entry = cards.get(job.id);
    if ($("jobs").children[place] !== entry.card) $("jobs").insertBefore(entry.card, $("jobs").children[place] || null);
    update(entry, job, list.data.slice(place + 1).filter(other => OPEN.includes(other.status)).length);
  });
  $("jobs-empty").hidden = list.data.length > 0;
  $("jobs-more").hidden = !list.has_more || shown === MOST;
}

const nameOf = job => job.prompt ? `“${job.prompt}”` : job.kind === "reconstruct" ? "Reconstruction" : "From a picture";

function newCard(job) {
  const card = $("job").content.firstElementChild.cloneNode(true), part = name => card.querySelector(name);
  const entry = { card, part, urls: [], status: null };
  const remove = words => async event => {
    if (event.target.matches(".delete") && !confirm(`Delete ${nameOf(job)}?`)) return;
    event.target.disabled = true;
    try { await request(`v1/videos/${job.id}`, { method: "DELETE" }); tell($("jobs-state"), `${words}: ${nameOf(job)}`); }
    catch (error) { if (error.status !== 404) tell($("jobs-state"), error.message, true); }
    event.target.disabled = false;
    $("videos-title").focus();
    await refresh();
  };
  part("h3").textContent = nameOf(job);
  part("progress").setAttribute("aria-label", `Progress of ${nameOf(job)}`);
  part(".notes").hidden = !job.warnings.length;
  part(".notes").replaceChildren(...job.warnings.map(warning => {
    const item = document.createElement("li");
    item.textContent = sentence(warning);
    return item;
  }));
  part(".stop-job").onclick = remove("Stopped");
  part(".delete").onclick = remove("Deleted");
  part(".again").onclick = () => actions.again(job);
  return entry;
}

function update(entry, job, ahead) {
  const { part } = entry, isOpen = OPEN.includes(job.status), before = entry.status;
  part("progress").value = job.progress;
  part(".progress span").textContent = job.status === "in_progress" ? `${job.progress} %`
    : ahead ? `Waiting, ${ahead} of yours ${ahead === 1 ? "is" : "are"} ahead` : "Waiting";
  part(".facts").firstElementChild.textContent = facts(job); // those of a reconstruction are known later
  if (job.status === before) return;
  entry.status = job.status;
  part(".progress").hidden = part(".stop-job").hidden = !isOpen;
  part(".delete").hidden = isOpen;
  part(".again").hidden = isOpen || !job.prompt;
  part(".facts").lastElementChild.textContent = origin(job);
  if (job.status === "failed") {
    part(".error").hidden = false;
    part(".error").textContent = `${sentence(job.error.message)}.`;
  }
  if (job.status === "completed") showVideo(entry, job, OPEN.includes(before));
  if (OPEN.includes(before)) tell($("jobs-state"), `${nameOf(job)} ${isOpen ? "is being made" : job.status === "failed" ? "failed" : "is ready"}.`);
}

const unbroken = text => text.replace(/\s/g, "\u00a0");

function facts(job) {
  return [
    job.num_frames && `${job.num_frames} frames`,
    job.seconds && `${job.seconds} s`,
    job.fps && `${job.fps} frames/s`,
    job.size?.replace("x", " × "),
    `seed ${job.seed}`,
  ].filter(Boolean).map(unbroken).join(" · ");
}

function origin(job) {
  const time = new Date(job.created_at * 1000).toLocaleString([], { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
  const tokens = job.tokens && `${Object.entries(job.tokens).map(([kind, count]) => `${count} ${kind}`).join(" + ")} tokens`;
  return [tokens, time].filter(Boolean).map(unbroken).join(" · ");
}

function showVideo(entry, job, isNew) {
  const { card, part, urls } = entry, original = originals.get(job.id), video = part(".made video");
  const load = async (variant, element) => {
    const blob = await (await request(`v1/videos/${job.id}/content?variant=${variant}`)).blob();
    urls.push(element.src = URL.createObjectURL(blob));
    return blob;
  };
  if (original) {
    part(".original").hidden = part(".made figcaption").hidden = false;
    urls.push(part(".original video").src = original);
    originals.delete(job.id);
  }
  [video.width, video.height] = job.size.split("x"); // its place is kept while it is loaded
  part(".made").hidden = false;
  const failed = error => { part(".error").hidden = false; part(".error").textContent = error.message; };
  part(".keyframes").addEventListener("toggle", () => load("spritesheet", part(".keyframes img")).catch(failed), { once: true });
  const seen = new IntersectionObserver(async ([{ isIntersecting }]) => {
    if (!isIntersecting) return;
    seen.disconnect();
    let blob;
    try { blob = await load("video", video); } catch (error) { part(".made").hidden = true; return failed(error); }
    for (const name of [".save", ".ask", ".keyframes"]) part(name).hidden = false;
    part(".ask").onclick = () => actions.ask(job, blob);
    part(".save").href = video.src;
    part(".save").download = `${job.id}.mp4`;
    if (isNew && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      for (const one of card.querySelectorAll(".screens video")) if (one.src) one.play().catch(() => {});
    }
  });
  seen.observe(card);
}
