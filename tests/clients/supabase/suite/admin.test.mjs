// What the service role may do, and second factors.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TOTP } from "otpauth";
import { address, client, PASSWORD, person, service } from "./world.mjs";

const admin = service.auth.admin;

test("users are made, read, changed, listed and deleted", async () => {
  const email = address();
  const made = await admin.createUser({
    email, password: PASSWORD, email_confirm: true, user_metadata: { a: 1 }, app_metadata: { plan: "pro" },
  });
  assert.equal(made.error, null);
  const { id } = made.data.user;
  assert.deepEqual(made.data.user.app_metadata, { plan: "pro", provider: "email", providers: ["email"] });
  assert.equal((await admin.createUser({ email })).error.code, "email_exists");
  assert.equal((await admin.getUserById(id)).data.user.email, email);
  const changed = await admin.updateUserById(id, { user_metadata: { a: null, b: 2 }, email: address() });
  assert.equal(changed.error, null);
  assert.equal(changed.data.user.user_metadata.b, 2);
  assert.equal((await admin.listUsers()).error, null);
  const paged = await admin.listUsers({ page: 1, perPage: 1 });
  assert.equal(paged.data.users.length, 1);
  assert.ok(paged.data.total >= 1);
  assert.equal((await admin.deleteUser(id)).error, null);
  assert.deepEqual([(await admin.getUserById(id)).error.code, (await admin.getUserById(id)).error.status], ["user_not_found", 404]);
});

test("a soft deletion frees the address and ends the sessions", async () => {
  const { email, user, session } = await person();
  assert.equal((await admin.deleteUser(user.id, true)).error, null);
  assert.equal((await client().auth.refreshSession({ refresh_token: session.refresh_token })).error.code, "refresh_token_not_found");
  assert.equal((await client().auth.signUp({ email, password: PASSWORD })).error, null);
});

test("a password set by an admin ends all sessions; an unconfirmed user is told so", async () => {
  const { user, supabase } = await person();
  await admin.updateUserById(user.id, { password: "set by an admin" });
  assert.equal((await supabase.auth.refreshSession()).error.code, "refresh_token_not_found");
  const email = address();
  await admin.createUser({ email, password: PASSWORD });
  assert.equal((await client().auth.signInWithPassword({ email, password: PASSWORD })).error.code, "email_not_confirmed");
  assert.equal((await client().auth.signUp({ email, password: "of somebody else" })).error.code, "user_already_exists");
});

test("links are made for every purpose, and verify", async () => {
  const { email } = await person();
  for (const type of ["magiclink", "recovery"]) {
    const { data, error } = await admin.generateLink({ type, email });
    assert.equal(error, null);
    assert.equal(data.properties.verification_type, type);
    assert.equal((await client().auth.verifyOtp({ token_hash: data.properties.hashed_token, type })).error, null);
  }
  const fresh = address();
  const signup = await admin.generateLink({ type: "magiclink", email: fresh });
  assert.equal(signup.data.properties.verification_type, "signup");
  const otp = await client().auth.verifyOtp({ email: fresh, token: signup.data.properties.email_otp, type: "signup" });
  assert.equal(otp.error, null);
  assert.equal((await admin.generateLink({ type: "recovery", email: address() })).error.code, "user_not_found");
  assert.equal((await admin.generateLink({ type: "invite", email })).error.code, "email_exists");
  const moved = await admin.generateLink({ type: "email_change_new", email, newEmail: address() });
  assert.equal(moved.error, null);
  const change = await client().auth.verifyOtp({ token_hash: moved.data.properties.hashed_token, type: "email_change" });
  assert.equal(change.error, null);
});

test("the anon key and a user are no admins", async () => {
  const { supabase } = await person();
  assert.equal((await supabase.auth.admin.listUsers()).error.code, "not_admin");
  assert.equal((await client().auth.admin.createUser({ email: address() })).error.code, "not_admin");
});

test("a second factor raises the session, ends weaker ones, and accepts no code twice", async () => {
  const { supabase, email, user } = await person();
  const weaker = client();
  await weaker.auth.signInWithPassword({ email, password: PASSWORD });
  const { data: factor, error } = await supabase.auth.mfa.enroll({ factorType: "totp", friendlyName: "phone" });
  assert.equal(error, null);
  assert.match(factor.totp.qr_code, /^data:image\/svg\+xml/);
  const challenge = (await supabase.auth.mfa.challenge({ factorId: factor.id })).data;
  const totp = new TOTP({ secret: factor.totp.secret });
  const right = totp.generate();
  const wrong = right === "000000" ? "111111" : "000000";
  const answer = (code, id = challenge.id) => supabase.auth.mfa.verify({ factorId: factor.id, challengeId: id, code });
  assert.equal((await answer(wrong)).error.code, "mfa_verification_failed");
  assert.equal((await answer(right)).error, null);
  assert.equal((await supabase.auth.mfa.getAuthenticatorAssuranceLevel()).data.currentLevel, "aal2");
  assert.equal((await weaker.auth.refreshSession()).error.code, "refresh_token_not_found");
  const second = (await supabase.auth.mfa.challenge({ factorId: factor.id })).data;
  assert.equal((await answer(right, second.id)).error.code, "mfa_verification_failed");
  assert.equal((await admin.mfa.listFactors({ userId: user.id })).data.factors.length, 1);
  assert.equal((await supabase.auth.mfa.unenroll({ factorId: factor.id })).error, null);
});
