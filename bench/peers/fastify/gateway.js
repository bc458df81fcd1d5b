// A gateway of Fastify's own plugins: JWT with its token cache, rate limit on Redis, proxy; one line of log a request.
import httpProxy from "@fastify/http-proxy";
import jwt from "@fastify/jwt";
import rateLimit from "@fastify/rate-limit";
import Fastify from "fastify";
import Redis from "ioredis";

const { PUBLIC_KEY, ISSUER, REDIS_URL, UPSTREAM, PORT } = process.env;
const app = Fastify({ logger: true, disableRequestLogging: true });

await app.register(jwt, {
  secret: { public: PUBLIC_KEY },
  verify: { algorithms: ["ES256"], allowedAud: "authenticated", allowedIss: ISSUER, cache: 10000 },
});
app.addHook("onRequest", (request) => request.jwtVerify());
await app.register(rateLimit, {
  redis: new Redis(REDIS_URL),
  max: 10_000_000,
  timeWindow: 900_000,
  keyGenerator: (request) => request.user.sub,
  hook: "preHandler",
});
app.addHook("onResponse", async (request, reply) => {
  request.log.info({ method: request.method, route: request.url, status: reply.statusCode, ms: reply.elapsedTime });
});
await app.register(httpProxy, { upstream: UPSTREAM, prefix: "/v1", rewritePrefix: "/internal" });
await app.listen({ port: Number(PORT), host: "127.0.0.1" });
