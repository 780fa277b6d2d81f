"use strict";
const at = (id) => document.getElementById(id);
const headers = () => {
  const token = at("token").value;
  return { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
};

async function ask(path, body) {
  const response = await fetch(path, body ? { method: "POST", headers: headers(), body: JSON.stringify(body) } : { headers: headers() });
  const made = await response.json();
  if (!response.ok) throw new Error(made.error.message);
  return { made, timing: response.headers.get("Server-Timing") || "" };
}

function showClasses(output, classes, row) {
  const ranked = row.probs.map((share, i) => [classes[i], share]).sort((a, b) => b[1] - a[1]);
  for (const [name, share] of ranked.slice(0, 10)) {
    const line = document.createElement("div"), meter = document.createElement("meter");
    meter.value = share;
    line.append(meter, ` ${name} ${share.toFixed(3)}`);
    output.append(line);
  }
}

async function tried(model, section, text, second) {
  const output = section.querySelector("output"), cost = section.querySelector(".cost"), began = performance.now();
  output.textContent = cost.textContent = "";
  output.className = "";
  try {
    let usage, timing;
    const options = { model: model.id, max_tokens: 40, temperature: 0 };
    if (model.task === "completion") {
      const { made, timing: t } = await ask("v1/completions", { ...options, prompt: text });
      output.textContent = made.choices[0].text;
      [usage, timing] = [made.usage, t];
    } else if (model.task === "chat") {
      const { made, timing: t } = await ask("v1/chat/completions", { ...options, messages: [{ role: "user", content: text }] });
      output.textContent = made.choices[0].message.content;
      [usage, timing] = [made.usage, t];
    } else {
      const input = second ? { text, text_pair: second } : { text };
      const { made, timing: t } = await ask("v1/classify", { model: model.id, input: [input] });
      const row = made.data[0];
      if (row.probs) showClasses(output, made.classes, row);
      else if (row.value !== undefined) output.textContent = row.value;
      else output.textContent = (row.entities || []).map((e) => `${e.text}: ${e.type}`).join("\n") || row.tags.join(" ");
      [usage, timing] = [made.usage, t];
    }
    const parts = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => `${name} ${ms} ms`);
    cost.textContent = `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written; ${parts.join(", ")}; ${Math.round(performance.now() - began)} ms in all`;
  } catch (error) {
    output.textContent = error.message;
    output.className = "error";
  }
}

function card(model) {
  const section = at("prompt").content.cloneNode(true).querySelector("section");
  const [first, second] = section.querySelectorAll("textarea"), form = section.querySelector("form"), button = section.querySelector("button");
  section.dataset.prompt = model.id;
  section.querySelector("h2").textContent = model.id;
  const names = model.classes.length ? `: ${model.classes.slice(0, 12).join(", ")}` : "";
  section.querySelector(".facts").textContent = `${model.task}${names}; up to ${model.max_length} tokens`;
  section.querySelector(".second").hidden = model.texts < 2;
  second.required = model.texts > 1;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    await tried(model, section, first.value, second.value);
    button.disabled = false;
  });
  return section;
}

async function list() {
  try {
    const { made } = await ask("v1/models");
    at("prompts").replaceChildren(...made.data.map(card));
    at("state").textContent = `${made.data.length} prompts on one backbone`;
  } catch (error) {
    at("state").textContent = error.message;
  }
}

at("token").addEventListener("change", list);
at("entry").addEventListener("submit", (event) => event.preventDefault());
list();
