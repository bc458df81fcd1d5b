// The playground's behaviour: plain fetch against the public API, as any frontend would use it.

const anonKey = document.querySelector('meta[name="anon-key"]').content;
const at = (id) => document.getElementById(id);
let session = JSON.parse(sessionStorage.getItem("session") ?? "null");
let running = null;

function tell(message) {
  at("notice").textContent = message;
  at("notice").hidden = !message;
}

async function call(method, path, body, headers = {}) {
  const response = await fetch(path, {
    method,
    headers: {
      apikey: anonKey,
      ...(session && { Authorization: `Bearer ${session.access_token}` }),
      ...(body && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body && JSON.stringify(body),
  });
  if (response.status === 401 && session) leave();
  return response;
}

async function explain(response) {
  const problem = await response.json().catch(() => ({}));
  const until = problem.resets_at ? ` It resets on ${new Date(problem.resets_at).toLocaleDateString()}.` : "";
  return (problem.detail ?? problem.message ?? problem.msg ?? problem.error ?? `The answer was ${response.status}.`) + until;
}

function enter(newSession) {
  session = newSession;
  sessionStorage.setItem("session", JSON.stringify(session));
  show();
}

function leave() {
  session = null;
  sessionStorage.removeItem("session");
  show();
}

function show() {
  at("entrance").hidden = Boolean(session);
  at("inside").hidden = !session;
  at("who").textContent = session
    ? `Signed in as ${session.user.email}.`
    : "An AI cofounder. Make an account to try it; nothing leaves this machine.";
  if (session) {
    showUsage();
    showPlans();
    followUser();
  }
}

at("entrance").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  const form = new FormData(event.target);
  const credentials = { email: form.get("email"), password: form.get("password") };
  const path = event.submitter?.value === "signin" ? "/auth/v1/token?grant_type=password" : "/auth/v1/signup";
  const response = await call("POST", path, credentials, { "x-supabase-api-version": "2024-01-01" });
  if (!response.ok) return tell(await explain(response));
  const answer = await response.json();
  if (answer.access_token) enter(answer);
  else tell("We have sent you a mail: open its link, then sign in.");
});

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  at("answer").textContent = "";
  const form = new FormData(event.target);
  const sliders = ["playfulness", "revenue_focus", "investor_perspective"];
  const body = { task: form.get("task"), vibe: Object.fromEntries(sliders.map((name) => [name, Number(form.get(name))])) };
  const response = await call("POST", "/v1/runs", body, { "Idempotency-Key": crypto.randomUUID() });
  if (!response.ok) return tell(await explain(response));
  running = await response.json();
  at("cancel").hidden = false;
  at("state").textContent = "queued";
  await followRun(running.links.events, 0);
  at("cancel").hidden = true;
  running = null;
  showUsage();
});

at("cancel").addEventListener("click", () => running && call("POST", running.links.cancel));

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

async function followRun(path, seen) {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    try {
      const response = await call("GET", path, null, seen ? { "Last-Event-ID": String(seen) } : {});
      for await (const event of eventsOf(response)) {
        seen = Number(event.id);
        at("state").textContent = event.name.replace("run.", "").replace("_", " ");
        if (event.name === "run.started") at("answer").textContent = "";
        if (event.name === "run.delta") at("answer").textContent += event.data.text;
        if (/succeeded|failed|cancelled|timed_out/.test(event.name)) return;
      }
    } catch (error) {
      at("state").textContent = "connecting again";
    }
    await new Promise((resume) => setTimeout(resume, 500));
  }
  tell("The stream was lost; the run goes on. Reload to see it.");
}

async function followUser() {
  const owner = session.user.id;
  while (session?.user.id === owner) {
    try {
      const response = await call("GET", "/v1/events");
      for await (const event of eventsOf(response)) {
        if (event.name === "usage.threshold_reached") tell(`You have used ${event.data.percent} % of your ${event.data.metric}.`);
        if (/usage|entitlements/.test(event.name)) showUsage();
        if (event.name === "entitlements.changed") showPlans();
      }
    } catch (error) {
      // a cut stream is taken up again below
    }
    await new Promise((resume) => setTimeout(resume, 3000));
  }
}

async function showUsage() {
  const response = await call("GET", "/v1/usage");
  if (!response.ok) return;
  const usage = await response.json();
  at("usage").replaceChildren(...Object.entries(usage.metrics).map(([name, metric]) => bar(name, metric)));
}

function bar(name, { used, held, limit }) {
  const block = document.createElement("div");
  block.className = "bar";
  const line = document.createElement("div");
  const label = Object.assign(document.createElement("span"), { textContent: name });
  const number = (value) => value.toLocaleString("en");
  const amount = Object.assign(document.createElement("small"), {
    textContent: `${number(used)}${held ? ` + ${number(held)} held` : ""} of ${limit === null ? "unlimited" : number(limit)}`,
  });
  line.append(label, amount);
  const gauge = document.createElement("progress");
  gauge.max = limit ?? 1;
  gauge.value = limit === null ? 0 : Math.min(used + held, limit);
  gauge.setAttribute("aria-label", `${name} used`);
  block.append(line, gauge);
  return block;
}

async function showPlans() {
  const [plans, subscription] = await Promise.all([call("GET", "/v1/billing/plans"), call("GET", "/v1/billing/subscription")]);
  if (!plans.ok || !subscription.ok) return;
  const { items } = await plans.json();
  const { tier } = await subscription.json();
  at("plans").replaceChildren(
    Object.assign(document.createElement("span"), { textContent: `Your plan: ${tier}.` }),
    ...(tier === "free" ? items.filter((plan) => plan.price_minor).map(upgradeButton) : []),
  );
}

function upgradeButton(plan) {
  const price = (plan.price_minor / 100).toLocaleString("en", { style: "currency", currency: plan.currency });
  const button = Object.assign(document.createElement("button"), {
    className: "quiet",
    textContent: `${plan.name}, ${price} a ${plan.interval}`,
  });
  button.addEventListener("click", async () => {
    const response = await call("POST", "/v1/billing/checkout", { tier: plan.tier, success_path: "/", cancel_path: "/" });
    if (!response.ok) return tell(await explain(response));
    location.assign((await response.json()).url);
  });
  return button;
}

at("leave").addEventListener("click", async () => {
  await call("POST", "/auth/v1/logout?scope=local");
  leave();
});

at("erase").addEventListener("click", async () => {
  if (!confirm("Delete the account and everything it holds? This cannot be undone.")) return;
  const response = await call("DELETE", "/v1/account", { confirm: true });
  if (!response.ok) return tell(await explain(response));
  leave();
  tell("The account is gone.");
});

show();
