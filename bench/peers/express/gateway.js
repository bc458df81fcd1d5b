// A gateway as Express is usually made one: express-jwt, express-rate-limit on Redis, http-proxy-middleware, morgan.
import { Agent } from "node:http";
import express from "express";
import { rateLimit } from "express-rate-limit";
import { expressjwt } from "express-jwt";
import { createProxyMiddleware } from "http-proxy-middleware";
import Redis from "ioredis";
import morgan from "morgan";
import { RedisStore } from "rate-limit-redis";

const { PUBLIC_KEY, ISSUER, REDIS_URL, UPSTREAM, PORT } = process.env;
const redis = new Redis(REDIS_URL);
const app = express();

app.use(morgan("combined"));
app.use(expressjwt({ secret: PUBLIC_KEY, algorithms: ["ES256"], audience: "authenticated", issuer: ISSUER }));
app.use(
  rateLimit({
    windowMs: 900_000,
    limit: 10_000_000,
    standardHeaders: "draft-8",
    legacyHeaders: false,
    keyGenerator: (request) => request.auth.sub,
    store: new RedisStore({ sendCommand: (command, ...rest) => redis.call(command, ...rest) }),
  }),
);
app.use(
  "/v1",
  createProxyMiddleware({ target: `${UPSTREAM}/internal`, agent: new Agent({ keepAlive: true, maxSockets: 64 }) }),
);
app.listen(Number(PORT), "127.0.0.1");
