// Signing up, in, on and out.
import assert from "node:assert/strict";
import { test } from "node:test";
import { address, client, PASSWORD, person, service } from "./world.mjs";

test("signing up gives a session, and the address signs in whatever its case", async () => {
  const { session, user, email } = await person();
  assert.equal(session.token_type, "bearer");
  assert.equal(user.user_metadata.name, "Ada");
  assert.equal(user.identities.length, 1);
  const { data, error } = await client().auth.signInWithPassword({ email: email.toUpperCase(), password: PASSWORD });
  assert.equal(error, null);
  assert.equal(data.user.id, user.id);
});

test("refusals carry the codes clients branch on", async () => {
  const { email } = await person();
  const wrong = await client().auth.signInWithPassword({ email, password: "something else" });
  const unknown = await client().auth.signInWithPassword({ email: address(), password: "something else" });
  assert.deepEqual([wrong.error.code, wrong.error.status], ["invalid_credentials", 400]);
  assert.deepEqual([wrong.error.message, wrong.error.status], [unknown.error.message, unknown.error.status]);
  assert.equal((await client().auth.signUp({ email, password: PASSWORD })).error.code, "user_already_exists");
  const weak = await client().auth.signUp({ email: address(), password: "short" });
  assert.equal(weak.error.name, "AuthWeakPasswordError");
  assert.deepEqual(weak.error.reasons, ["length"]);
  assert.equal((await client().auth.signUp({ email: "nonsense", password: PASSWORD })).error.code, "validation_failed");
});

test("twenty refreshes at once end in one session, and the chain goes on", async () => {
  const { session } = await person();
  const answers = await Promise.all(
    Array.from({ length: 20 }, () => client().auth.refreshSession({ refresh_token: session.refresh_token })),
  );
  assert.deepEqual(answers.map((answer) => answer.error), Array(20).fill(null));
  const tokens = new Set(answers.map((answer) => answer.data.session.refresh_token));
  assert.equal(tokens.size, 1);
  const next = await client().auth.refreshSession({ refresh_token: [...tokens][0] });
  assert.equal(next.error, null);
  assert.equal((await client().auth.refreshSession({ refresh_token: "a".repeat(20) })).error.code, "validation_failed");
});

test("the three logouts end the own, the other and all sessions", async () => {
  const { email, supabase: first } = await person();
  const others = [client(), client()];
  for (const one of others) await one.auth.signInWithPassword({ email, password: PASSWORD });
  const alive = async (one) => (await one.auth.refreshSession()).error === null;
  assert.equal((await others[0].auth.signOut({ scope: "local" })).error, null);
  assert.deepEqual([await alive(first), await alive(others[1])], [true, true]);
  assert.equal((await first.auth.signOut({ scope: "others" })).error, null);
  assert.deepEqual([await alive(first), await alive(others[1])], [true, false]);
  const token = (await first.auth.getSession()).data.session.access_token;
  assert.equal((await first.auth.signOut({ scope: "global" })).error, null);
  assert.equal((await client().auth.getUser(token)).error.name, "AuthSessionMissingError");
});

test("getClaims verifies over JWKS, and getUser over the server", async () => {
  const { supabase, user } = await person();
  const { data, error } = await supabase.auth.getClaims();
  assert.equal(error, null);
  assert.equal(data.header.alg, "ES256");
  assert.deepEqual([data.claims.sub, data.claims.aud, data.claims.role], [user.id, "authenticated", "authenticated"]);
  assert.equal(data.claims.amr[0].method, "password");
  assert.equal((await supabase.auth.getUser()).data.user.id, user.id);
  assert.equal((await supabase.auth.getUser("not.a.token")).error.code, "bad_jwt");
});

test("an anonymous user keeps the account when it gets an address", async () => {
  const supabase = client();
  const { data, error } = await supabase.auth.signInAnonymously({ options: { data: { from: "landing" } } });
  assert.equal(error, null);
  assert.equal(data.user.is_anonymous, true);
  assert.deepEqual(data.user.app_metadata, {});
  assert.equal((await supabase.auth.updateUser({ password: PASSWORD })).error.code, "validation_failed");
  const email = address();
  const upgraded = await supabase.auth.updateUser({ email, password: PASSWORD });
  assert.equal(upgraded.error, null);
  assert.deepEqual([upgraded.data.user.is_anonymous, upgraded.data.user.email], [false, email]);
  const again = await client().auth.signInWithPassword({ email, password: PASSWORD });
  assert.equal(again.data.user.id, data.user.id);
});

test("a new password ends the other sessions, and must be new", async () => {
  const { supabase, email } = await person();
  const other = client();
  await other.auth.signInWithPassword({ email, password: PASSWORD });
  assert.equal((await supabase.auth.updateUser({ password: PASSWORD })).error.code, "same_password");
  assert.equal((await supabase.auth.updateUser({ password: "another long one" })).error, null);
  assert.equal((await other.auth.refreshSession()).error.code, "refresh_token_not_found");
  assert.equal((await supabase.auth.refreshSession()).error, null);
});

test("metadata merges, null deletes, and rights cannot be written", async () => {
  const { supabase } = await person();
  await supabase.auth.updateUser({ data: { theme: "dark", nested: { kept: null } } });
  const { data } = await supabase.auth.updateUser({ data: { name: null, role: "service_role" } });
  assert.equal("name" in data.user.user_metadata, false);
  assert.deepEqual(data.user.user_metadata.nested, { kept: null });
  assert.equal(data.user.role, "authenticated");
  const { data: refreshed } = await supabase.auth.refreshSession();
  const { data: claims } = await supabase.auth.getClaims(refreshed.session.access_token);
  assert.equal(claims.claims.role, "authenticated");
});

test("a banned user is told so after the right password alone, and comes back", async () => {
  const { supabase, email, user } = await person();
  assert.equal((await service.auth.admin.updateUserById(user.id, { ban_duration: "1h30m" })).error, null);
  const wrong = await client().auth.signInWithPassword({ email, password: "something else" });
  assert.equal(wrong.error.code, "invalid_credentials");
  assert.equal((await client().auth.signInWithPassword({ email, password: PASSWORD })).error.code, "user_banned");
  assert.equal((await supabase.auth.refreshSession()).error.code, "user_banned");
  await service.auth.admin.updateUserById(user.id, { ban_duration: "none" });
  assert.equal((await client().auth.signInWithPassword({ email, password: PASSWORD })).error, null);
});
