// The playground's behaviour: plain fetch against the public API, as any frontend would use it.

import { render } from "./markdown.js";

const anonKey = document.querySelector('meta[name="anon-key"]').content;
const at = (id) => document.getElementById(id);
const SLIDERS = ["playfulness", "revenue_focus", "investor_perspective"];
const TOLD = {
  "run.started": (data) => ["agents", `started a run on attempt ${data.attempt ?? 1}`],
  "run.finished": (data) => ["agents", `ended it: ${data.outcome ?? "done"}, ${number((data.input_tokens ?? 0) + (data.output_tokens ?? 0))} tokens`],
  "usage.settled": () => ["metering", "settled the hold by what was used"],
  "usage.threshold_reached": (data) => ["metering", `${data.percent} % of your ${data.metric} are used`],
  "entitlements.changed": (data) => ["gateway", `your plan is ${data.tier}`],
  "billing.invoice_paid": () => ["billing", "your invoice was paid"],
  "billing.payment_failed": () => ["billing", "your payment failed"],
};
let session = JSON.parse(sessionStorage.getItem("session") ?? "null");
let running = null;

const number = (value) => value.toLocaleString("en");

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function tell(message) {
  at("notice").textContent = message;
  at("notice").hidden = !message;
  if (message) at("notice").scrollIntoView({ block: "nearest" });
}

function announce(message) {
  at("news").textContent = message;
  at("news").hidden = !message;
}

// Talking to the API ----------------------------------------------------------------------------------------------

async function send(method, path, body, headers) {
  return fetch(path, {
    method,
    headers: {
      apikey: anonKey,
      ...(session && { Authorization: `Bearer ${session.access_token}` }),
      ...(body && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body && JSON.stringify(body),
  });
}

async function call(method, path, body, headers = {}) {
  const response = await send(method, path, body, headers);
  if (response.status !== 401 || !session) return response;
  if (await refresh()) return send(method, path, body, headers);
  leave();
  return response;
}

async function refresh() {
  const token = session.refresh_token;
  const response = await send("POST", "/auth/v1/token?grant_type=refresh_token", { refresh_token: token }, {});
  if (!response.ok) return false;
  keep(await response.json());
  return true;
}

async function explain(response) {
  const problem = await response.json().catch(() => ({}));
  const until = problem.resets_at ? ` It resets on ${new Date(problem.resets_at).toLocaleDateString()}.` : "";
  return (problem.detail ?? problem.message ?? problem.msg ?? problem.error ?? `The answer was ${response.status}.`) + until;
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      if (fields.event) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));

// In and out ------------------------------------------------------------------------------------------------------

function keep(newSession) {
  session = newSession;
  sessionStorage.setItem("session", JSON.stringify(session));
}

function leave() {
  session = null;
  sessionStorage.removeItem("session");
  for (const id of ["answer", "facts", "behind", "state"]) at(id).textContent = "";
  show();
}

function show() {
  for (const id of ["inside", "leave", "who"]) at(id).hidden = !session;
  at("outside").hidden = Boolean(session);
  at("who").textContent = session?.user.email ?? "";
  if (!session) return;
  showUsage();
  showPlans();
  showRuns();
  followUser();
}

at("entrance").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  const form = new FormData(event.target);
  const credentials = { email: form.get("email"), password: form.get("password") };
  const isSignIn = event.submitter?.value === "signin";
  const path = isSignIn ? "/auth/v1/token?grant_type=password" : "/auth/v1/signup";
  const response = await call("POST", path, credentials, { "x-supabase-api-version": "2024-01-01" });
  if (!response.ok) return tell(await explain(response));
  const answer = await response.json();
  if (!answer.access_token) return announce("We have sent you a mail: open its link, then sign in.");
  keep(answer);
  announce("");
  show();
  at("run").focus();
});

at("leave").addEventListener("click", async () => {
  await call("POST", "/auth/v1/logout?scope=local");
  leave();
});

at("erase").addEventListener("click", async () => {
  if (!confirm("Delete the account and everything it holds? This cannot be undone.")) return;
  const response = await call("DELETE", "/v1/account", { confirm: true });
  if (!response.ok) return tell(await explain(response));
  leave();
  announce("The account is gone; the services are erasing what they hold of it.");
});

// Asking ----------------------------------------------------------------------------------------------------------

function asked() {
  const form = new FormData(at("ask"));
  return { task: form.get("task"), vibe: Object.fromEntries(SLIDERS.map((name) => [name, Number(form.get(name))])) };
}

at("ask").addEventListener("input", (event) => {
  if (event.target.type === "range") event.target.closest(".slider").querySelector("output").value = event.target.value;
});

for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    at("ask").elements.task.value = chip.textContent;
    at("ask").elements.task.focus();
  });
}

at("prompt").addEventListener("toggle", async (event) => {
  if (!event.target.open) return;
  const response = await call("POST", "/v1/prompts/preview", asked());
  const { system, user } = response.ok ? await response.json() : {};
  event.target.querySelector("pre").textContent = response.ok ? `${system}\n\n${user}` : await explain(response);
});

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  announce("");
  at("run").disabled = true;
  const response = await call("POST", "/v1/runs", asked(), { "Idempotency-Key": crypto.randomUUID() });
  if (response.ok) {
    running = await response.json();
    at("cancel").hidden = false;
    await followRun(running.links.events);
    at("cancel").hidden = true;
    running = null;
    showUsage();
    showRuns();
  } else {
    tell(await explain(response));
  }
  at("run").disabled = false;
});

at("cancel").addEventListener("click", () => running && call("POST", running.links.cancel));

function write(text, isGoing) {
  at("answer").setAttribute("aria-busy", isGoing);
  at("answer").replaceChildren(...render(text));
  if (isGoing) at("answer").scrollTop = at("answer").scrollHeight;
}

// What arrives at once is shown as if written: quicker the more there is, and at once for who wants no motion.
class Writing {
  #isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  #shown = 0;
  #text = "";
  #frame = 0;
  #done = () => {};

  add(text) {
    this.#text += text;
    if (this.#isStill) this.#shown = this.#text.length;
    this.#frame ||= requestAnimationFrame(() => this.#step());
  }

  clear() {
    this.#text = "";
    this.#shown = 0;
  }

  /** Resolves when all that was added is to be seen. */
  end() {
    return new Promise((resolve) => {
      this.#done = resolve;
      this.add("");
    });
  }

  #step() {
    this.#shown = Math.min(this.#text.length, this.#shown + Math.max(3, Math.ceil((this.#text.length - this.#shown) / 40)));
    write(this.#text.slice(0, this.#shown), true);
    const isBehind = this.#shown < this.#text.length;
    this.#frame = isBehind ? requestAnimationFrame(() => this.#step()) : 0;
    if (!isBehind) this.#done(write(this.#text, false));
  }
}

async function followRun(path) {
  const began = performance.now();
  const writing = new Writing();
  let seen = 0;
  write("", true);
  at("facts").textContent = "";
  at("state").textContent = "queued";
  for (let attempt = 0; attempt < 20; attempt += 1) {
    try {
      const response = await call("GET", path, null, seen ? { "Last-Event-ID": String(seen) } : {});
      for await (const event of eventsOf(response)) {
        seen = Number(event.id);
        at("state").textContent = event.name.replace("run.", "").replace("_", " ");
        if (event.name === "run.started") writing.clear();
        if (event.name === "run.delta") writing.add(event.data.text);
        if (/succeeded|failed|cancelled|timed_out/.test(event.name)) {
          at("facts").textContent = `${event.name.replace("run.", "").replace("_", " ")} in ${((performance.now() - began) / 1000).toFixed(1)} s`;
          return writing.end();
        }
      }
    } catch (error) {
      at("state").textContent = "connecting again";
    }
    await pause(500);
  }
  await writing.end();
  tell("The stream was lost; the run goes on. Find it among your runs.");
}

async function showRuns() {
  const response = await call("GET", "/v1/runs?limit=6");
  if (!response.ok) return;
  const { items } = await response.json();
  if (!items.length) return;
  if (!at("facts").textContent && !running) open(items[0]);
  at("runs").replaceChildren(...items.map((run) => make("li", {}, openButton(run), " ", make("small", { textContent: run.status.replace("_", " ") }))));
}

function openButton(run) {
  const button = make("button", { type: "button", textContent: run.task.length > 56 ? `${run.task.slice(0, 55)}…` : run.task });
  button.addEventListener("click", () => {
    open(run);
    at("answer").scrollIntoView({ block: "nearest" });
  });
  return button;
}

function open(run) {
  write(run.output || "There is no text.", false);
  at("facts").textContent = `${number(run.usage.input_tokens + run.usage.output_tokens)} tokens, ${run.model_used ?? "no model"}`;
}

// The plan --------------------------------------------------------------------------------------------------------

async function showUsage() {
  const response = await call("GET", "/v1/usage");
  if (!response.ok) return null;
  const usage = await response.json();
  at("tier").textContent = usage.tier;
  at("usage").replaceChildren(...Object.entries(usage.metrics).map(([name, metric]) => bar(name, metric)));
  at("resets").textContent = `Counts again from ${new Date(usage.period.end).toLocaleDateString(undefined, { day: "numeric", month: "long" })}.`;
  return usage.tier;
}

// Metering hears of a new plan when this page does: what it answers at that moment may still be of the old one.
async function showUsageOn(tier) {
  for (let tries = 0; tries < 20 && (await showUsage()) !== tier; tries += 1) await pause(500);
}

function bar(name, { used, held, limit }) {
  const amount = `${number(used)}${held ? ` + ${number(held)} held` : ""} of ${limit === null ? "unlimited" : number(limit)}`;
  const share = limit ? (used + held) / limit : 0;
  const gauge = make("progress", { max: 1, value: Math.min(share, 1), className: share >= 1 ? "full" : share >= 0.8 ? "near" : "" });
  gauge.setAttribute("aria-label", `${name} used`);
  return make("div", { className: "bar" }, make("div", {}, make("span", { textContent: name }), make("small", { textContent: amount })), gauge);
}

async function showPlans() {
  const [plans, subscription] = await Promise.all([call("GET", "/v1/billing/plans"), call("GET", "/v1/billing/subscription")]);
  if (!plans.ok || !subscription.ok) return;
  const { items } = await plans.json();
  const { tier } = await subscription.json();
  at("plans").replaceChildren(
    ...(tier === "free" ? items.filter((plan) => plan.is_for_sale ?? plan.price_minor).slice(0, 2).map(upgradeButton) : [portalButton()]),
  );
}

function upgradeButton(plan) {
  const price = (plan.price_minor / 100).toLocaleString("en", { style: "currency", currency: plan.currency, maximumFractionDigits: 0 });
  const button = make("button", { className: "quiet" }, make("span", { textContent: `Upgrade to ${plan.name}` }), make("small", { textContent: `${number(plan.limits.runs)} runs, ${price} a ${plan.interval}` }));
  button.addEventListener("click", () => goTo("/v1/billing/checkout", { tier: plan.tier, success_path: "/?paid", cancel_path: "/" }));
  return button;
}

function portalButton() {
  const button = make("button", { className: "quiet", textContent: "Manage the subscription" });
  button.addEventListener("click", () => goTo("/v1/billing/portal", { return_path: "/" }));
  return button;
}

async function goTo(path, body) {
  const response = await call("POST", path, body);
  if (!response.ok) return tell(await explain(response));
  location.assign((await response.json()).url);
}

// The user's own stream -------------------------------------------------------------------------------------------

async function followUser() {
  const owner = session.user.id;
  let seen = "";
  while (session?.user.id === owner) {
    try {
      const response = await call("GET", "/v1/events", null, seen ? { "Last-Event-ID": seen } : {});
      for await (const event of eventsOf(response)) {
        seen = event.id;
        note(event);
      }
    } catch (error) {
      // a cut stream is taken up again below
    }
    await pause(3000);
  }
}

function note({ name, data }) {
  const [who, what] = TOLD[name]?.(data) ?? ["event", name];
  at("behind").prepend(make("li", {}, make("strong", { textContent: who }), ` ${what} `, make("small", { textContent: new Date(data.at ?? Date.now()).toLocaleTimeString() })));
  while (at("behind").children.length > 30) at("behind").lastChild.remove();
  if (name === "usage.threshold_reached") announce(`You have used ${data.percent} % of your ${data.metric}.`);
  if (/^usage/.test(name)) showUsage();
  if (name === "entitlements.changed") {
    showUsageOn(data.tier);
    showPlans();
    if (data.tier !== "free") announce(`You are on ${data.tier} now.`);
  }
}

if (new URLSearchParams(location.search).has("paid")) {
  history.replaceState(null, "", "/");
  announce("Paid. The webhook is on its way…");
  // It may have been quicker than this page.
  Promise.resolve().then(async () => {
    const response = session && (await call("GET", "/v1/billing/subscription"));
    const { tier } = response?.ok ? await response.json() : {};
    if (!tier || tier === "free") return;
    announce(`You are on ${tier} now.`);
    showUsageOn(tier);
  });
}
show();
