// Draws openapi.json and asyncapi.json; text only ever goes in as text.
const METHODS = ["get", "post", "put", "patch", "delete"];

function element(name, content, ...children) {
  const made = document.createElement(name);
  if (content !== undefined && content !== null) made.textContent = content;
  made.append(...children);
  return made;
}

function table(head, rows) {
  const made = element("table", null, element("tr", null, ...head.map((cell) => element("th", cell))));
  made.append(...rows.map((row) => element("tr", null, ...row.map((cell) => element("td", cell)))));
  return made;
}

const example = (value) => element("pre", typeof value === "string" ? value : JSON.stringify(value, null, 2));

function schema(document, media) {
  const ref = media.schema?.$ref ?? media.schema?.anyOf?.find((one) => one.$ref)?.$ref;
  return ref ? document.components.schemas[ref.split("/").pop()] : media.schema;
}

function body(document, title, content) {
  return Object.entries(content ?? {}).flatMap(([kind, media]) => {
    const shown = [element("h4", `${title} ${kind}`)];
    if (media.example !== undefined) shown.push(example(media.example));
    const members = schema(document, media)?.properties;
    if (members && media.example === undefined) {
      shown.push(table(["member", "type", ""], Object.entries(members).map(([name, one]) => [
        name, [one.type ?? one.anyOf?.map((each) => each.type).join(" or ") ?? ""].flat().join(" or "), one.description ?? "",
      ])));
    }
    return shown;
  });
}

function refusals(document, responses) {
  const rows = Object.entries(responses)
    .map(([status, one]) => [status, one.$ref ? document.components.responses[one.$ref.split("/").pop()] : one])
    .filter(([status]) => status >= "400")
    .map(([status, one]) => [
      status, one.description, Object.keys(one.content?.["application/problem+json"]?.examples ?? {}).join(", "),
    ]);
  return rows.length ? [element("h4", "Refusals"), table(["status", "meaning", "codes"], rows)] : [];
}

function refusalCodes(document, one) {
  return Object.values(one.responses)
    .map((each) => each.$ref && document.components.responses[each.$ref.split("/").pop()])
    .flatMap((each) => Object.keys(each?.content?.["application/problem+json"]?.examples ?? {}))
    .join(" ");
}

function operation(document, method, path, one) {
  const made = element("details", null, element("summary", null, element("b", method.toUpperCase()), element("code", path)));
  made.dataset.words = `${method} ${path} ${(one.tags ?? []).join(" ")} ${refusalCodes(document, one)}`.toLowerCase();
  made.addEventListener("toggle", () => {
    if (made.dataset.drawn) return;
    made.dataset.drawn = "yes";
    if (one.description) made.append(element("p", one.description));
    if (one.parameters?.length) {
      made.append(element("h4", "Parameters"), table(["name", "in", "required"], one.parameters.map((each) => [
        each.name, each.in, each.required ? "yes" : "",
      ])));
    }
    made.append(...body(document, "Request", one.requestBody?.content));
    for (const [status, answer] of Object.entries(one.responses)) {
      if (status < "400") made.append(...body(document, `Answer ${status}`, answer.content));
    }
    made.append(...refusals(document, one.responses));
  });
  return made;
}

function eventOf(name, channel) {
  const made = element("details", null, element("summary", null, element("b", "event"), element("code", channel.address ?? name)));
  made.dataset.words = `event ${name} ${channel.address}`.toLowerCase();
  made.append(...Object.values(channel.messages).map((message) => element("pre", JSON.stringify(message.payload ?? message.name, null, 2))));
  return made;
}

async function draw() {
  const [api, events] = await Promise.all(["/openapi.json", "/asyncapi.json"].map(async (path) => (await fetch(path)).json()));
  const main = document.getElementById("operations");
  main.textContent = "";
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => methods[each])) {
      const group = methods[method].tags?.[0] ?? "webhooks";
      groups.set(group, [...(groups.get(group) ?? []), operation(api, method, path, methods[method])]);
    }
  }
  groups.set("events", Object.entries(events.channels).map(([name, channel]) => eventOf(name, channel)));
  for (const [group, shown] of groups) main.append(element("section", null, element("h2", group), ...shown));
  document.getElementById("find").addEventListener("input", (typed) => {
    const wanted = typed.target.value.trim().toLowerCase();
    for (const one of main.querySelectorAll("details")) one.hidden = !one.dataset.words.includes(wanted);
    for (const section of main.querySelectorAll("section")) {
      section.hidden = !section.querySelector("details:not([hidden])");
    }
  });
}

draw();
