// What goes through the mailbox: recovery, magic links, codes, changes of address, invitations.
import assert from "node:assert/strict";
import { test } from "node:test";
import { address, click, client, codeIn, letter, linkIn, PASSWORD, person, service, URL_ } from "./world.mjs";

const fragment = (url) => new URLSearchParams(url.hash.slice(1));

test("recovery by link: the session in the fragment sets a new password", async () => {
  const { email } = await person();
  const redirectTo = `${URL_}/reset?step=2`;
  assert.equal((await client().auth.resetPasswordForEmail(email, { redirectTo })).error, null);
  const link = linkIn(await letter(email, "Reset"));
  const { status, to } = await click(link);
  assert.equal(status, 303);
  assert.equal(to.origin + to.pathname + to.search, redirectTo);
  assert.equal(fragment(to).get("type"), "recovery");
  const supabase = client();
  const set = await supabase.auth.setSession({
    access_token: fragment(to).get("access_token"),
    refresh_token: fragment(to).get("refresh_token"),
  });
  assert.equal(set.error, null);
  assert.equal((await supabase.auth.updateUser({ password: "a brand new password" })).error, null);
  assert.equal((await client().auth.signInWithPassword({ email, password: "a brand new password" })).error, null);
  const again = await click(link);
  assert.equal(fragment(again.to).get("error_code"), "otp_expired");
});

test("recovery by PKCE: the code works once, for the client that asked", async () => {
  const asking = client({ flowType: "pkce" });
  const { email } = await person();
  assert.equal((await asking.auth.resetPasswordForEmail(email, { redirectTo: `${URL_}/reset` })).error, null);
  const { to } = await click(linkIn(await letter(email, "Reset")));
  const code = to.searchParams.get("code");
  const thief = client({ flowType: "pkce" });
  await thief.auth.signInWithOtp({ email: address() });
  assert.equal((await thief.auth.exchangeCodeForSession(code)).error.code, "bad_code_verifier");
  const events = [];
  asking.auth.onAuthStateChange((event) => events.push(event));
  const exchanged = await asking.auth.exchangeCodeForSession(code);
  assert.equal(exchanged.error, null);
  assert.equal(exchanged.data.user.email, email);
  assert.ok(events.includes("PASSWORD_RECOVERY"));
  const again = client({ flowType: "pkce" });
  await again.auth.signInWithOtp({ email: address() });
  assert.equal((await again.auth.exchangeCodeForSession(code)).error.code, "flow_state_not_found");
});

test("recovery for an address nobody has is answered in the same way", async () => {
  assert.deepEqual((await client().auth.resetPasswordForEmail(address())).data, {});
});

test("a code signs in, once; five wrong guesses burn it", async () => {
  const { email } = await person();
  const supabase = client();
  assert.equal((await supabase.auth.signInWithOtp({ email })).error, null);
  const code = codeIn(await letter(email, "sign-in"));
  const { data, error } = await supabase.auth.verifyOtp({ email, token: code, type: "email" });
  assert.equal(error, null);
  assert.equal(data.user.email, email);
  assert.equal((await supabase.auth.verifyOtp({ email, token: code, type: "email" })).error.code, "otp_expired");

  const other = await person();
  await client().auth.signInWithOtp({ email: other.email });
  const burned = codeIn(await letter(other.email, "sign-in"));
  const wrong = burned === "000000" ? "111111" : "000000";
  for (let guess = 0; guess < 5; guess += 1) {
    const refused = await client().auth.verifyOtp({ email: other.email, token: wrong, type: "email" });
    assert.equal(refused.error.code, "otp_expired");
  }
  const late = await client().auth.verifyOtp({ email: other.email, token: burned, type: "email" });
  assert.equal(late.error.code, "otp_expired");
});

test("a code is for what it was mailed for", async () => {
  const { email } = await person();
  await client().auth.resetPasswordForEmail(email);
  const code = codeIn(await letter(email, "Reset"));
  assert.equal((await client().auth.verifyOtp({ email, token: code, type: "signup" })).error.code, "otp_expired");
  assert.equal((await client().auth.verifyOtp({ email, token: code, type: "recovery" })).error, null);
});

test("a new address signs up by code, unless that is not wanted", async () => {
  const email = address();
  const refused = await client().auth.signInWithOtp({ email, options: { shouldCreateUser: false } });
  assert.equal(refused.error.code, "otp_disabled");
  assert.equal((await client().auth.signInWithOtp({ email, options: { data: { plan: "x" } } })).error, null);
  const { data } = await client().auth.verifyOtp({ email, token: codeIn(await letter(email, "sign-in")), type: "email" });
  assert.equal(data.user.user_metadata.plan, "x");
  assert.ok(data.user.email_confirmed_at);
});

test("an address changes when the new one is confirmed", async () => {
  const { supabase, email } = await person();
  const next = address();
  const asked = await supabase.auth.updateUser({ email: next });
  assert.deepEqual([asked.data.user.email, asked.data.user.new_email], [email, next]);
  const code = codeIn(await letter(next, "new e-mail"));
  assert.equal((await client().auth.verifyOtp({ email: next, token: code, type: "email_change" })).error, null);
  assert.equal((await supabase.auth.getUser()).data.user.email, next);
  const taken = await person();
  assert.equal((await taken.supabase.auth.updateUser({ email: next })).error.code, "email_exists");
});

test("reauthentication mails a nonce, and a wrong one is refused", async () => {
  const { supabase, email } = await person();
  assert.equal((await supabase.auth.reauthenticate()).error, null);
  const nonce = codeIn(await letter(email, "confirmation code"));
  const wrong = nonce === "000000" ? "111111" : "000000";
  const refused = await supabase.auth.updateUser({ password: "yet another one", nonce: wrong });
  assert.equal(refused.error.code, "reauthentication_not_valid");
  assert.equal((await supabase.auth.updateUser({ password: "yet another one", nonce })).error, null);
});

test("an invitation makes an account that its owner then gives a password", async () => {
  const email = address();
  const invited = await service.auth.admin.inviteUserByEmail(email, { data: { team: "a" } });
  assert.equal(invited.error, null);
  assert.ok(invited.data.user.invited_at);
  const token = new URL(linkIn(await letter(email, "invited"))).searchParams.get("token");
  const supabase = client();
  const verified = await supabase.auth.verifyOtp({ token_hash: token, type: "invite" });
  assert.equal(verified.error, null);
  assert.equal((await supabase.auth.updateUser({ password: PASSWORD })).error, null);
  assert.equal((await service.auth.admin.inviteUserByEmail(email)).error.code, "email_exists");
});

test("resend says nothing about who is known", async () => {
  const { email } = await person();
  for (const one of [email, address()]) {
    assert.equal((await client().auth.resend({ type: "signup", email: one })).error, null);
  }
});
