"use strict";
// The page: takes images, sends each in a request of its own, shows what comes back. Names of files are not sent.

const $ = (id) => document.getElementById(id);
const AT_ONCE = 2, TRIES = 30;
const waiting = [], cards = new Set();
let running = 0, model = null, key = sessionStorage.getItem("key") || "", asking = null;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
const percent = (p) => (p > 0.995 && p < 1 ? "> 99 %" : p > 0 && p < 0.005 ? "< 1 %" : Math.round(100 * p) + " %");
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const fixed = (x, n) => (x === null || x === undefined ? "–" : x.toFixed(n));

class Problem extends Error {
  constructor(what, remedy) { super(what); this.remedy = remedy || ""; }
}

// --- the service ---------------------------------------------------------------------------------------------------

async function call(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      const headers = key ? { Authorization: "Bearer " + key } : {};
      response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
    } catch {
      throw new Problem("The service does not answer.", "Check that it runs and that this computer reaches it, then add the image again.");
    }
    if (response.status === 401) {
      if (!(await askForKey(key))) throw new Problem("A key is needed.", "Press “Key …” above and enter it, then add the image again.");
      continue;
    }
    if ((response.status === 429) && attempt < TRIES) {
      if (options.onwait) options.onwait();
      await pause(Math.min(30, Number(response.headers.get("Retry-After")) || 1));
      continue;
    }
    return response;
  }
}

async function jsonOf(response) {
  let content = null;
  try { content = await response.json(); } catch { /* a proxy may answer with a page */ }
  if (content && content.error) throw new Problem(sentence(content.error.what), sentence(content.error.remedy));
  if (!content) throw new Problem("The service gave no answer that can be read (status " + response.status + ").", "Try again; tell whoever keeps it if it stays.");
  return content;
}

function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "";
}

function askForKey(tried) {
  if (tried !== key) return Promise.resolve(true); // another request has asked meanwhile
  if (!asking) {
    asking = new Promise((done) => {
      $("key-error").textContent = tried ? "This key is not known here." : "";
      $("key").value = "";
      $("key-dialog").returnValue = "";
      $("key-dialog").addEventListener("close", () => {
        const given = $("key-dialog").returnValue === "ok" ? $("key").value.trim() : "";
        $("key").value = "";
        asking = null;
        if (given) { key = given; sessionStorage.setItem("key", key); }
        done(Boolean(given));
      }, { once: true });
      $("key-dialog").showModal();
    });
  }
  return asking;
}

async function loadModel() {
  try {
    model = await jsonOf(await call("/v1/model"));
    $("key-button").hidden = !key;
    $("model").textContent = model.title + ", fingerprint " + model.fingerprint.slice(0, 12);
    const l = model.limits, mega = (n) => Math.round(n / 1048576) + " MB";
    $("takes").textContent = model.formats.join(", ") + "; up to " + mega(l.file_bytes) + " and " + Math.round(l.pixels / 1e6) + " million pixels. One picture of a breast ultrasound in each file.";
    describeModel();
  } catch (problem) {
    $("key-button").hidden = false;
    $("model").textContent = problem.message + " " + problem.remedy;
  }
}

function describeModel() {
  const rows = [["Model", model.title], ["Fingerprint", model.fingerprint], ["Classes", model.classes.join(", ")]];
  for (const [name, value] of Object.entries(model.thresholds)) rows.push(["Threshold, " + name, fixed(value, 3)]);
  if (model.coverage !== null) rows.push(["Conformal sets", "hold the true class in " + percent(model.coverage) + " of the images of each class"]);
  rows.push(["Training domain", sentence(model.domain)]);
  const found = (model.metrics && model.metrics.intervals) || {};
  const titles = { accuracy: "Accuracy", auc_malignant: "AUC, malignant against rest", sensitivity_malignant: "Sensitivity, malignant", specificity_malignant: "Specificity, malignant" };
  for (const [name, title] of Object.entries(titles)) {
    const m = found[name];
    if (m) rows.push([title + ", in its study", fixed(m.estimate, 3) + (m.low === null ? "" : " (" + Math.round(100 * (m.level || 0.95)) + " % interval " + fixed(m.low, 3) + " to " + fixed(m.high, 3) + ")")]);
  }
  const t = model.training;
  if (t.images) rows.push(["Trained and tested on", t.images + " images" + (t.sources ? " (" + t.sources.join(", ") + ")" : "")]);
  for (const text of model.unknown) rows.push(["Not known", text]);
  const list = make("dl");
  for (const [term, text] of rows) list.append(make("dt", "", term), make("dd", "", text));
  $("about-text").replaceChildren(list);
}

// --- images in -----------------------------------------------------------------------------------------------------

function spacing() {
  const field = $("spacing"), text = field.value.trim();
  const bad = field.validity.badInput || (text && !(Number(text) >= 1e-4 && Number(text) <= 10));
  $("spacing-error").textContent = bad ? "Give millimetres between 0.0001 and 10, or leave it empty." : "";
  field.setAttribute("aria-invalid", bad ? "true" : "false");
  return bad ? undefined : text ? Number(text) : null;
}

function take(files) {
  const mm = spacing();
  if (mm === undefined) { $("spacing").focus(); return; }
  for (const file of files) {
    const card = newCard(file.name || "pasted image");
    $("cards").append(card.element);
    waiting.push({ card, file, mm, frames: $("frames").value, region: $("region").value });
  }
  tell();
  work();
}

async function work() {
  while (running < AT_ONCE && waiting.length) {
    const job = waiting.shift();
    if (!cards.has(job.card)) continue;
    running++;
    predict(job).catch((problem) => fail(job.card, problem)).finally(() => { running--; tell(); work(); });
  }
}

async function viewable(file) {
  try { (await createImageBitmap(file)).close(); return true; } catch { return false; }
}

async function predict({ card, file, mm, frames, region }) {
  if (model && file.size > model.limits.file_bytes) throw new Problem("The file is too large: " + Math.ceil(file.size / 1048576) + " MB.", "Export the picture itself, at screen size.");
  card.state.textContent = "Being predicted …";
  const form = new FormData(), content = await read(file);
  form.append("files", new Blob([content], { type: "application/octet-stream" }), "image");
  const query = new URLSearchParams({ overlays: "true" });
  if (isDicom(content)) for (const [name, value] of Object.entries({ dicom: "true", frames, region })) query.set(name, value);
  if (!(await viewable(file))) query.set("picture", "true");
  if (mm !== null) query.set("spacing_mm", String(mm));
  const onwait = () => { card.state.textContent = "The service is busy; this image waits its turn …"; };
  const answer = await jsonOf(await call("/v1/predict?" + query, { method: "POST", body: form, onwait }));
  let last = card;
  answer.results.forEach((result, k) => {
    if (result.error) throw new Problem(sentence(result.error.what), sentence(result.error.remedy));
    if (!cards.has(card)) return; // was removed meanwhile
    const name = [card.name, ...placeOf(result)].join(", ");
    const here = k ? newCard(name) : card;
    if (k) { last.element.after(here.element); last = here; }
    here.title.textContent = name;
    here.shown = { name, base: card.name, file, result, answer };
    show(here);
  });
}

async function read(file) {
  try { return await file.arrayBuffer(); } catch { throw new Problem("The file cannot be read by this browser.", "Check that it still exists and is no folder."); }
}

// What tells a result from others of its file.
function placeOf({ frame, frames, where: w }) {
  if (!w) return frames > 1 ? ["picture " + (frame + 1) + " of " + frames] : [];
  const parts = w.frames > 1 ? ["frame " + w.frame + " of " + w.frames] : [];
  return w.regions > 1 ? [...parts, "region " + w.region + " of " + w.regions] : parts;
}

function isDicom(content) {
  return content.byteLength > 132 && String.fromCharCode(...new Uint8Array(content, 128, 4)) === "DICM";
}

// --- cards ---------------------------------------------------------------------------------------------------------

function newCard(name) {
  const element = $("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  const card = { name, element, title: find("h2"), state: find(".state"), shown: null, failed: false, bitmaps: null, turn: 0 };
  const id = "image-" + newCard.count++;
  card.title.textContent = name;
  card.title.id = id;
  element.setAttribute("aria-labelledby", id);
  card.state.textContent = "Waits …";
  find(".remove").setAttribute("aria-label", "Remove " + name);
  find(".remove").addEventListener("click", () => {
    const next = element.nextElementSibling || element.previousElementSibling;
    drop(card);
    tell();
    (next ? next : $("files")).focus();
  });
  cards.add(card);
  return card;
}
newCard.count = 0;

function drop(card) {
  cards.delete(card);
  seen.unobserve(card.element);
  rest(card);
  card.element.remove();
}

function fail(card, problem) {
  card.failed = true;
  const box = make("div", "fault");
  box.append(make("span", "", (problem.message + " " + (problem.remedy || "")).trim()));
  card.state.replaceChildren(box);
}

function show(card) {
  const { result, answer } = card.shown, element = card.element;
  const find = (selector) => element.querySelector(selector);
  card.state.textContent = "";
  for (const text of result.warnings) find(".warnings").append(make("div", "warning", text));
  find(".decision").textContent = result.words.decision || "Most probable: " + result.predicted;
  find(".reason").textContent = result.words.reason || "";
  element.classList.toggle("unsure", Boolean(result.abstains || result.in_domain === false));
  find("h3").textContent = result.calibrated ? "Calibrated probability" : "Probability, not calibrated";
  const list = find(".classes");
  for (const [name, p] of Object.entries(result.probability)) {
    const inside = !result.conformal_set || result.conformal_set.includes(name);
    const row = make("li", inside ? "" : "ruled"), label = make("span", "name", name), track = make("div", "track");
    if (!inside) label.append(make("span", "note", " (not in the prediction set)"));
    const fill = make("div", "fill " + (name === "malignant" || name === "normal" ? name : ""));
    fill.style.width = 100 * p + "%";
    track.append(fill);
    if (name === "malignant" && result.threshold !== null) {
      label.append(make("span", "note", " (threshold " + fixed(result.threshold, 2) + ")"));
      const tick = make("div", "tick");
      tick.style.left = 100 * result.threshold + "%";
      track.append(tick);
    }
    row.append(label, make("span", "value", percent(p)), track);
    list.append(row);
  }
  find(".set").textContent = result.words.set || "";
  find(".size").textContent = result.words.size || "";
  for (const text of result.notes) find(".notes").append(make("li", "", sentence(text)));
  setUpLayers(card);
  find(".save-json").addEventListener("click", () => save(JSON.stringify(plain(card.shown), null, 1), "application/json", stem(card.shown) + ".json"));
  find(".save-png").addEventListener("click", async () => {
    const lines = [card.shown.name, Object.entries(result.probability).map(([n, p]) => n + " " + percent(p)).join("   "), ...result.warnings,
      ...["decision", "reason", "set", "size"].map((k) => result.words[k]).filter(Boolean),
      "Research use only, not a medical device. " + answer.bundle.title + ", fingerprint " + answer.bundle.fingerprint.slice(0, 12) + ", sonobreast " + answer.sonobreast];
    save(await drawSheet(card.shown, card.select.value, ...shares(card), lines), "image/png", stem(card.shown) + ".png");
  });
  offerDicom(card);
  find(".body").hidden = false;
  $("unknown").replaceChildren(...(answer.unknown.length ? [make("p", "soft small", answer.unknown.join(" "))] : []));
}

const DICOM_TITLES = { report: "Report (SR)", segmentation: "Segmentation (SEG)", image: "Judged frame (image)" };

function offerDicom(card) {
  const given = card.shown.result.dicom, box = card.element.querySelector(".dicom");
  box.hidden = !given;
  if (!given) return;
  const buttons = box.querySelector(".buttons"), notes = box.querySelector("ul");
  for (const { kind, content } of given.files) {
    const button = make("button", "save-dicom", DICOM_TITLES[kind] || kind);
    button.type = "button";
    button.setAttribute("aria-label", "Download DICOM: " + (DICOM_TITLES[kind] || kind));
    button.addEventListener("click", () => save(bytesOf(content, "application/dicom"), "", stem(card.shown) + "-" + kind + ".dcm"));
    buttons.append(button);
  }
  const said = given.error ? [sentence(given.error.what) + " " + sentence(given.error.remedy)] : given.notes.filter((n) => !card.shown.result.notes.includes(n)).map(sentence);
  if (given.files.length) {
    if (!given.files.some((f) => f.kind === "segmentation")) said.unshift("No lesion is outlined, so there is no segmentation.");
    said.push("These files belong to the study of the image and name the patient as it does.");
  }
  notes.replaceChildren(...said.map((text) => make("li", "", text)));
}

function setUpLayers(card) {
  const { result } = card.shown, find = (selector) => card.element.querySelector(selector);
  const canvas = find("canvas"), names = Object.keys(result.layers.maps), id = card.title.id;
  card.select = find("select");
  card.mapFade = find(".map input");
  card.maskFade = find(".mask input");
  for (const name of names) card.select.append(new Option(name, name, false, name === result.predicted));
  card.select.setAttribute("aria-label", "Class whose map is shown");
  card.mapFade.setAttribute("aria-label", "Strength of the map");
  card.maskFade.setAttribute("aria-label", "Strength of the outlined lesion");
  const outlined = result.layers.mask !== null && result.lesion && result.lesion.area_px > 0;
  for (const part of card.element.querySelectorAll(".layers .map")) part.hidden = !names.length;
  find(".mask").hidden = !outlined;
  find(".layers").hidden = !names.length && !outlined;
  find(".nolayers").textContent = names.length ? "" : "This bundle has no map of where the network looked.";
  canvas.width = result.width;
  canvas.height = result.height;
  canvas.setAttribute("aria-label", card.shown.name + ": " + result.predicted + " " + percent(result.probability[result.predicted]));
  canvas.id = id + "-picture";
  card.select.addEventListener("change", () => wake(card));
  for (const fade of [card.mapFade, card.maskFade]) fade.addEventListener("input", () => { valueText(fade); redraw(card); });
  [card.mapFade, card.maskFade].forEach(valueText);
  seen.observe(card.element);
}

const valueText = (fade) => fade.setAttribute("aria-valuetext", fade.value + " percent");
const shares = (card) => [card.mapFade.value / 100, card.maskFade.value / 100];

// Bitmaps are large: only images near the window have some.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = [...cards].find((c) => c.element === entry.target);
    if (card && card.shown) entry.isIntersecting ? wake(card) : rest(card);
  }
}, { rootMargin: "2000px 0px" });

async function wake(card) {
  const turn = ++card.turn;
  try {
    const bitmaps = await bitmapsOf(card.shown, card.select.value);
    if (turn !== card.turn) { closeBitmaps(bitmaps); return; }
    if (card.bitmaps) closeBitmaps(card.bitmaps);
    card.bitmaps = bitmaps;
    redraw(card);
  } catch {
    card.element.querySelector(".nolayers").textContent = "This browser cannot draw the picture.";
  }
}

function rest(card) {
  card.turn++;
  if (card.bitmaps) closeBitmaps(card.bitmaps);
  card.bitmaps = null;
}

function redraw(card) {
  if (!card.bitmaps) return;
  const canvas = card.element.querySelector("canvas");
  paint(canvas.getContext("2d"), 0, 0, canvas.width, canvas.height, card.bitmaps, ...shares(card));
}

// --- all of them ---------------------------------------------------------------------------------------------------

function tell() {
  const all = [...cards], done = all.filter((c) => c.shown), failed = all.filter((c) => c.failed);
  const left = all.length - done.length - failed.length, parts = [];
  const malignant = done.filter((c) => c.shown.result.malignant).length, unsure = done.filter((c) => c.shown.result.abstains).length;
  const outside = done.filter((c) => c.shown.result.in_domain === false).length;
  parts.push(all.length === 1 ? "1 image" : all.length + " images");
  if (left) parts.push(left + " in work");
  if (malignant) parts.push(malignant + " called malignant");
  if (unsure) parts.push(unsure + " without a decision");
  if (outside) parts.push(outside + " unlike the training images");
  if (failed.length) parts.push(failed.length + " could not be predicted");
  $("summary").textContent = parts.join(", ") + ".";
  $("bar").hidden = !all.length;
  $("save-all").hidden = done.length < 2;
  if (!done.length) $("unknown").replaceChildren();
}

function plain(shown) {
  const { layers, dicom, file, ...result } = shown.result;
  const { intended_use, sonobreast, bundle, unknown } = shown.answer;
  return { intended_use, name: shown.name, sonobreast, bundle, unknown, result };
}

function stem({ base, result }) {
  const place = placeOf(result).map((part) => part.replaceAll(" ", "-"));
  return [base.replace(/\.[A-Za-z0-9]{1,5}$/, ""), ...place, "sonobreast"].join("-").replace(/[\\/:*?"<>|\u0000-\u001f]/g, "_");
}

function save(content, type, name) {
  const link = make("a"), url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// --- what a person does --------------------------------------------------------------------------------------------

$("files").addEventListener("change", () => { take($("files").files); $("files").value = ""; });
$("spacing").addEventListener("change", spacing);
$("save-all").addEventListener("click", () => {
  const found = $("cards").children, ordered = [...found].map((e) => [...cards].find((c) => c.element === e)).filter((c) => c && c.shown);
  save(JSON.stringify(ordered.map((c) => plain(c.shown)), null, 1), "application/json", "sonobreast-results.json");
});
$("clear").addEventListener("click", () => { waiting.length = 0; for (const card of [...cards]) drop(card); tell(); $("files").focus(); });
$("key-button").addEventListener("click", async () => { if (await askForKey(key)) loadModel(); });
for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    if (event.dataTransfer && ![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); take(files); }
});
loadModel();
