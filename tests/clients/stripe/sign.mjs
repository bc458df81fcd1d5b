// Reads {payload, secret, timestamp} from standard input and prints the header Stripe would send with it.
import { readFileSync } from "node:fs";
import Stripe from "stripe";

const { payload, secret, timestamp } = JSON.parse(readFileSync(0, "utf8"));
const stripe = new Stripe("sk_test_of_nobody");
process.stdout.write(stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp }));
