// Reads {github: secret, gitlab: {secret, timestamp, bodies}} and prints deliveries as the forges would send them:
// payloads recorded from GitHub, one of every kind, and the given ones for GitLab, each signed by a library of others.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { sign } from "@octokit/webhooks-methods";
import { Webhook } from "standardwebhooks";

const recorded = createRequire(import.meta.url)("@octokit/webhooks-examples");
const { github, gitlab } = JSON.parse(readFileSync(0, "utf8"));

const fromGitHub = [];
for (const { name, examples } of recorded) {
  const byAction = new Map(examples.map((example) => [example.action, example]));
  for (const example of ["pull_request", "issues"].includes(name) ? byAction.values() : examples.slice(0, 1)) {
    const body = JSON.stringify(example);
    fromGitHub.push({ event: name, body, signature: await sign(github, body) });
  }
}
const webhook = new Webhook(gitlab.secret);
const fromGitLab = gitlab.bodies.map((body, number) => {
  const id = `delivery-${number}`;
  return { id, body, signature: webhook.sign(id, new Date(gitlab.timestamp * 1000), body) };
});
process.stdout.write(JSON.stringify({ github: fromGitHub, gitlab: fromGitLab }));
