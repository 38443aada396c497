"""People sign up, perhaps with a voucher: the user, the event and the voucher are committed together or not at all."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from events import UserCreated
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_pipeline import publish_event_async

Session = async_sessionmaker(expire_on_commit=False)


class Base(DeclarativeBase):
    """The application's tables."""


class User(Base):
    """Somebody who has signed up."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Voucher(Base):
    """A voucher that one user may redeem when signing up."""

    __tablename__ = "vouchers"
    code: Mapped[str] = mapped_column(primary_key=True)
    redeemed_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class SignUp(BaseModel):
    """What the sign-up form posts."""

    email: str
    voucher: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the database through asyncpg and create the tables."""
    engine = create_async_engine(os.environ["OUTBOX_POSTGRES_URL"].replace("+psycopg", "+asyncpg"))
    Session.configure(bind=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/users", status_code=201)
async def create_user(form: SignUp) -> dict[str, int]:
    """Create a user; answered after the commit, which a dependency with `yield` would leave for later."""
    async with Session.begin() as session:
        user = User(email=form.email)
        session.add(user)
        await session.flush()
        await publish_event_async(session, UserCreated(user_id=user.id, email=user.email))
        if form.voucher is not None:
            await redeem(session, user, form.voucher)
    return {"id": user.id}


async def redeem(session: AsyncSession, user: User, code: str) -> None:
    """Redeem a voucher; the exception rolls back the whole sign-up when it cannot be."""
    free = select(Voucher).where(Voucher.code == code, Voucher.redeemed_by.is_(None)).with_for_update()
    voucher = await session.scalar(free)
    if voucher is None:
        raise HTTPException(422, "This voucher cannot be redeemed.")
    voucher.redeemed_by = user.id
