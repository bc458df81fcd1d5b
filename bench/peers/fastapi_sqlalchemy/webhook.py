"""A webhook endpoint as a first draft in FastAPI is: Stripe's own check of the signature, one row by SQLAlchemy."""

import os
from datetime import datetime
from typing import Annotated, Any

import stripe
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=16)
sessions = async_sessionmaker(engine)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class StripeEvent(Base):
    __tablename__ = "peer_stripe_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    received_at: Mapped[datetime]


@app.post("/webhooks/stripe")
async def receive(request: Request, stripe_signature: Annotated[str, Header()]) -> dict[str, bool]:
    payload = await request.body()
    try:
        event = stripe.Webhook.construct_event(payload, stripe_signature, os.environ["WEBHOOK_SECRET"])
    except (ValueError, stripe.SignatureVerificationError) as error:
        raise HTTPException(400) from error
    async with sessions.begin() as session:
        row = {
            "id": event["id"],
            "type": event["type"],
            "payload": event.to_dict(),
            "received_at": func.now(),
        }
        await session.execute(insert(StripeEvent).values(row).on_conflict_do_nothing())
    return {"received": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]))
