// What every file of the suite shares: clients of the stack named by the environment, people, and their mailbox.
import { randomBytes } from "node:crypto";
import { createClient } from "@supabase/supabase-js";

const required = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: eval "$(make -s env)" first`);
  return value;
};

export const URL_ = required("NEXT_PUBLIC_SUPABASE_URL");
export const ANON = required("NEXT_PUBLIC_SUPABASE_ANON_KEY");
export const SERVICE = required("SUPABASE_SERVICE_ROLE_KEY");
const MAIL = required("MAIL_API_URL");
export const PASSWORD = "correct horse battery";

export function client(auth = {}) {
  const kept = new Map();
  const storage = {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, value),
    removeItem: (key) => void kept.delete(key),
  };
  return createClient(URL_, ANON, {
    auth: { autoRefreshToken: false, detectSessionInUrl: false, persistSession: true, storage, ...auth },
  });
}

export const service = createClient(URL_, SERVICE, {
  auth: { autoRefreshToken: false, persistSession: false },
});

export const address = () => `p${randomBytes(6).toString("hex")}@example.com`;

export async function person(auth = {}) {
  const supabase = client(auth);
  const email = address();
  const { data, error } = await supabase.auth.signUp({ email, password: PASSWORD, options: { data: { name: "Ada" } } });
  if (error) throw error;
  return { supabase, email, ...data };
}

// The text of the newest letter to an address whose subject matches; waits until it is there.
export async function letter(email, subject, within = 15_000) {
  const deadline = Date.now() + within;
  for (;;) {
    const found = await (await fetch(`${MAIL}/api/v1/messages?limit=200`)).json();
    const wanted = found.messages.find(
      (one) => one.To.some((to) => to.Address === email) && one.Subject.includes(subject),
    );
    if (wanted) return await (await fetch(`${MAIL}/api/v1/message/${wanted.ID}`)).json();
    if (Date.now() > deadline) throw new Error(`no letter "${subject}" for ${email}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

export const codeIn = (mail) => /\b(\d{6})\b/.exec(mail.Text)[1];
export const linkIn = (mail) => /https?:\/\/\S+\/auth\/v1\/verify\?\S+/.exec(mail.Text)[0];
// Where a click leads, without going there.
export const click = async (link) => {
  const response = await fetch(link, { redirect: "manual" });
  return { status: response.status, to: new URL(response.headers.get("location")) };
};
