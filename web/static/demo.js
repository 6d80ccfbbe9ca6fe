"use strict";

// Asks each variant for a hundred numbers and draws what came back. The server's views
// are in web/demo.py.

const REQUESTS = 100;
const WARM_UP = 12;
const TIMEOUT_MS = 30000;
const COLUMNS = 20;
const PITCH = 20;

const articles = [...document.querySelectorAll("article[data-variant]")];
const button = document.getElementById("run");
const progress = document.getElementById("progress");
const status = document.getElementById("status");

/** Processes in the order in which they first answered. */
const processes = new Map();

function processNumber(name) {
  if (!processes.has(name)) processes.set(name, processes.size + 1);
  return processes.get(name);
}

function runName() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Asking ------------------------------------------------------------------------------

async function ask(url, request) {
  const asked = new URL(`${url}?request=${request}`, location.href).href;
  const started = performance.now();
  const answer = { request, url: asked, number: null, process: null, error: null };
  try {
    const response = await fetch(asked, {
      method: "POST",
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await response.text();
    if (response.ok) {
      const { number, worker } = JSON.parse(text);
      answer.number = number;
      answer.process = processNumber(worker);
    } else {
      answer.error = messageOf(text) || `HTTP status ${response.status}`;
    }
  } catch (error) {
    answer.error = String(error.message || error);
  }
  answer.ms = performance.now() - started;
  return answer;
}

function messageOf(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return "";
  }
}

/** Ask `count` times at once; `heard` is called after each answer. */
async function askAtOnce(url, count, heard) {
  performance.clearResourceTimings();
  const answers = await Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const answer = await ask(url, index + 1);
      heard();
      return answer;
    }),
  );
  for (const answer of answers) {
    // Without the time that the request waited inside the browser.
    const [entry] = performance.getEntriesByName(answer.url, "resource");
    if (entry && entry.requestStart) answer.ms = entry.responseEnd - entry.requestStart;
  }
  return answers;
}

// Counting ----------------------------------------------------------------------------

function tally(answers) {
  const given = new Map();
  for (const { number } of answers) {
    if (number !== null) given.set(number, (given.get(number) || 0) + 1);
  }
  const counts = [...given.values()];
  const answered = answers.filter((answer) => answer.number !== null);
  const times = answered.map((answer) => answer.ms).sort((a, b) => a - b);
  let skipped = 0;
  for (let number = 1; number <= REQUESTS; number += 1) {
    if (!given.has(number)) skipped += 1;
  }
  return {
    given,
    once: counts.filter((count) => count === 1).length,
    more: counts.filter((count) => count > 1).length,
    skipped,
    failed: answers.length - answered.length,
    error: answers.map((answer) => answer.error).find(Boolean),
    processes: new Set(answered.map((answer) => answer.process)).size,
    median: times.length ? times[Math.floor(times.length / 2)] : null,
    slowest: times.length ? times[times.length - 1] : null,
    right: counts.length === REQUESTS && skipped === 0 && answered.length === REQUESTS,
  };
}

function verdict(result) {
  if (result.failed === REQUESTS) return `No answer. ${result.error}`;
  if (result.right) {
    const alone = result.processes === 1 ? ", all by one process" : "";
    return `1 to 100, each number once${alone}.`;
  }
  const parts = [];
  if (result.more) parts.push(`${plural(result.more, "number")} given more than once`);
  if (result.skipped) parts.push(`${result.skipped} skipped`);
  if (result.failed) parts.push(`${result.failed} not answered (${result.error})`);
  return `${parts.join(", ")}.`;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function inMs(ms) {
  return ms === null ? "–" : `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

// Drawing -----------------------------------------------------------------------------

function svgElement(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawNumbers(figure, given, description) {
  const rows = REQUESTS / COLUMNS;
  const svg = svgElement("svg", {
    viewBox: `0 0 ${COLUMNS * PITCH} ${rows * PITCH}`,
    role: "img",
    "aria-label": description,
  });
  for (let number = 1; number <= REQUESTS; number += 1) {
    const count = given.get(number) || 0;
    const x = ((number - 1) % COLUMNS) * PITCH;
    const y = Math.floor((number - 1) / COLUMNS) * PITCH;
    const cell = svgElement("rect", {
      x: x + 1.5,
      y: y + 1.5,
      width: PITCH - 3,
      height: PITCH - 3,
      rx: 3,
      class: count === 0 ? "none" : count === 1 ? "once" : "more",
    });
    const givenTo = count === 0 ? "nobody" : plural(count, "request");
    cell.append(svgElement("title", {}, `${number}: given to ${givenTo}`));
    svg.append(cell);
    if (count > 1) {
      const middle = { x: x + PITCH / 2, y: y + PITCH / 2 + 4, class: "count" };
      svg.append(svgElement("text", middle, count));
    }
  }
  figure.replaceChildren(svg);
}

function drawTimes(figure, answers, longestMs, description) {
  const answered = answers.filter((answer) => answer.number !== null);
  const rows = [...new Set(answered.map((answer) => answer.process))].sort((a, b) => a - b);
  const left = 74;
  const right = COLUMNS * PITCH - 6;
  const bottom = rows.length * 22 + 4;
  const svg = svgElement("svg", {
    viewBox: `0 0 ${COLUMNS * PITCH} ${bottom + 18}`,
    role: "img",
    "aria-label": description,
  });
  rows.forEach((process, row) => {
    const y = row * 22 + 13;
    const mine = answered.filter((answer) => answer.process === process);
    svg.append(svgElement("line", { x1: left, x2: right, y1: y, y2: y, class: "axis" }));
    svg.append(svgElement("text", { x: 0, y: y + 4, class: "label" }, `process ${process}`));
    for (const answer of mine) {
      const cx = left + (answer.ms / longestMs) * (right - left);
      const dot = svgElement("circle", { cx, cy: y, r: 3.5, class: "answer" });
      dot.append(svgElement("title", {}, `${answer.number} after ${inMs(answer.ms)}`));
      svg.append(dot);
    }
  });
  svg.append(svgElement("text", { x: left, y: bottom + 12, class: "label" }, "0"));
  const last = { x: right, y: bottom + 12, class: "label end" };
  svg.append(svgElement("text", last, inMs(longestMs)));
  figure.replaceChildren(svg);
}

function listAnswers(details, answers) {
  const rows = answers.map((answer) => {
    const row = document.createElement("tr");
    const cells = [
      answer.request,
      answer.number ?? answer.error,
      answer.process ?? "–",
      inMs(answer.ms),
    ];
    cells.forEach((text, index) => {
      const cell = document.createElement(index === 0 ? "th" : "td");
      if (index === 0) cell.scope = "row";
      cell.textContent = text;
      row.append(cell);
    });
    return row;
  });
  details.querySelector("tbody").replaceChildren(...rows);
  details.hidden = false;
}

function show(article, answers, result) {
  const row = document.querySelector(`tr[data-variant="${article.dataset.variant}"]`);
  const texts = {
    ...result,
    median: inMs(result.median),
    slowest: inMs(result.slowest),
  };
  for (const cell of row.querySelectorAll("td")) {
    const field = cell.dataset.field;
    cell.textContent = texts[field];
    const isFault = ["more", "skipped", "failed"].includes(field) && result[field] > 0;
    cell.className = isFault ? "wrong" : field === "once" && result.right ? "right" : "";
  }
  const words = article.querySelector(".verdict");
  words.textContent = verdict(result);
  words.className = `verdict ${result.right ? "right" : "wrong"}`;
  drawNumbers(article.querySelector(".numbers"), result.given, words.textContent);
  listAnswers(article.querySelector("details"), answers);
}

function showTimes(results) {
  const longestMs = Math.max(1, ...results.map(({ result }) => result.slowest || 0));
  for (const { article, answers, result } of results) {
    const words = result.slowest
      ? `Half of the answers came within ${inMs(result.median)}, ` +
        `the last after ${inMs(result.slowest)}.`
      : "No answer came.";
    drawTimes(article.querySelector(".times"), answers, longestMs, words);
  }
}

function noteProcesses(results) {
  const most = Math.max(...results.map(({ result }) => result.processes));
  const note = document.getElementById("note");
  note.hidden = most !== 1;
  note.textContent =
    "One process answered everything, so there was one global variable. Serve the app " +
    "with several workers, as start_web.py does, to see what becomes of it there.";
}

// Running -----------------------------------------------------------------------------

async function run() {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  document.body.dataset.state = "running";
  progress.value = 0;
  const name = runName();
  const results = [];
  for (const article of articles) {
    status.textContent = `Asking: ${article.querySelector("h2").textContent} …`;
    const url = article.dataset.url;
    await askAtOnce(url.replace("RUN", runName()), WARM_UP, () => {});
    const answers = await askAtOnce(url.replace("RUN", name), REQUESTS, () => {
      progress.value += 1;
    });
    const result = tally(answers);
    results.push({ article, answers, result });
    show(article, answers, result);
    showTimes(results);
  }
  noteProcesses(results);
  const right = results.filter(({ result }) => result.right).length;
  status.textContent = `Done: ${right} of ${results.length} gave 1 to 100, each once.`;
  document.body.dataset.state = "done";
  button.textContent = "Ask again";
  button.removeAttribute("aria-disabled");
}

performance.setResourceTimingBufferSize(4 * REQUESTS);
for (const article of articles) {
  drawNumbers(article.querySelector(".numbers"), new Map(), "No numbers yet.");
}
button.addEventListener("click", run);
