import { Panel } from "./panel.js";
import { streamCompletion } from "./stream.js";

const $ = (id) => document.getElementById(id);
let running = null; // AbortController of what is being generated
let model = null;

async function connect() {
  try {
    const answer = await fetch("/v1/models");
    model = (await answer.json()).data[0];
  } catch {
    return fail("The server does not answer. Is it still running?");
  }
  const { retrieval, num_neighbors, chunk_length, max_tokens } = model.retro;
  const about = retrieval ? `${num_neighbors} neighbors per chunk of ${chunk_length} tokens` : "without retrieval";
  $("model").textContent = `${model.id} · ${about}`;
  $("max_tokens").max = max_tokens;
  $("max_tokens").value = Math.min($("max_tokens").value, max_tokens);
  $("num_neighbors").max = num_neighbors;
  $("num_neighbors").value = num_neighbors;
  $("interval").max = chunk_length;
  $("interval").value = Math.min($("interval").value, chunk_length);
  for (const node of document.querySelectorAll(".retrieval")) show(node, retrieval);
  showPolicy();
}

// Fields of the chosen policy only.
function showPolicy() {
  const policy = model?.retro.retrieval ? $("retrieve").value : "off";
  show($("interval_label"), policy === "every");
  show($("threshold_label"), policy === "adaptive");
}

// What is hidden is disabled, too: a hidden field that holds a wrong value would keep the form from being sent.
function show(node, on) {
  node.hidden = !on;
  for (const field of node.querySelectorAll("input, select")) field.disabled = !on;
}

function settings() {
  const body = {
    prompt: $("prompt").value,
    max_tokens: $("max_tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    top_p: $("top_p").valueAsNumber,
    // One seed for both sides of a comparison, so that nothing but retrieval differs.
    seed: $("seed").value === "" ? Math.floor(Math.random() * 2 ** 31) : $("seed").valueAsNumber,
  };
  if (!model?.retro.retrieval) return body;
  const policy = $("retrieve").value;
  const parameters = { every: ":" + $("interval").value, adaptive: ":" + $("threshold").value };
  body.retrieve = policy + (parameters[policy] ?? "");
  if (policy !== "off") body.num_neighbors = $("num_neighbors").valueAsNumber;
  return body;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

async function generate() {
  if (running) return;
  const body = settings();
  const compare = $("compare").checked && model?.retro.retrieval;
  $("error").hidden = true;
  running = new AbortController();
  $("generate").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "Generating …";
  const jobs = [];
  if (compare) {
    const on = body.retrieve === "off" ? { ...body, retrieve: "on", num_neighbors: $("num_neighbors").valueAsNumber } : body;
    const { num_neighbors: _, ...rest } = body;
    jobs.push(["With retrieval", on, true], ["Without retrieval", { ...rest, retrieve: "off" }, false]);
  } else {
    jobs.push(["Text", body, Boolean(model?.retro.retrieval) && body.retrieve !== "off"]);
  }
  const panels = jobs.map(([title, , evidence]) => new Panel(title, body.prompt, evidence));
  $("output").classList.toggle("compare", compare);
  $("output").replaceChildren(...panels.map((panel) => panel.element));
  const outcomes = await Promise.all(jobs.map(([, job], i) => run(panels[i], job, running.signal)));
  running = null;
  $("generate").disabled = false;
  $("stop").disabled = true;
  $("status").textContent = outcomes.every((outcome) => outcome === "done") ? "Done." : outcomes.find((o) => o !== "done");
}

// Fills one panel; says how it ended.
async function run(panel, body, signal) {
  let reason = null;
  const begin = performance.now();
  try {
    const usage = await streamCompletion(body, signal, (choice) => {
      panel.add(choice);
      reason = choice.finish_reason ?? reason;
    });
    const seconds = (performance.now() - begin) / 1000;
    const ended = reason === "length" ? "length limit" : "end of text";
    const rate = (usage.completion_tokens / seconds).toFixed(0);
    const made = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s (${rate} per second)`;
    panel.finish(`${made} · ${ended} · seed ${body.seed}`, true);
    return "done";
  } catch (error) {
    if (error.name === "AbortError") {
      panel.finish("stopped", false);
      return "Stopped.";
    }
    fail(error.message);
    panel.finish("failed", false);
    return "Failed.";
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("retrieve").addEventListener("change", showPolicy);
connect();
