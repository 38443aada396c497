"""The shop: customers, orders and payments in schema `shop`, and the events it publishes about them.

An application like any other. Invariant: rows and events about them share one transaction; no function here
commits, that is for the caller that opened the session.
"""

from uuid import UUID

from sqlalchemy import Engine, ForeignKey, MetaData, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema

from outbox_pipeline.events import Event
from outbox_pipeline.publish import publish_event

SCHEMA = "shop"

#: What is on the shelves, with prices in cents.
PRICES = {"coffee": 890, "grinder": 12900, "kettle": 4950, "filter papers": 320, "mug": 1400}

_CUSTOMERS = ("Ada", "Barbara", "Edsger", "Grace", "Kurt", "Leslie", "Margaret", "Radia")


class _Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA)


class Customer(_Base):
    """A person who buys."""

    __tablename__ = "customers"

    customer_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(_Base):
    """One thing bought; `status` is placed, paid or cancelled."""

    __tablename__ = "orders"

    order_id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.customer_id))
    item: Mapped[str]
    total_cents: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed", index=True)


class Payment(_Base):
    """Money received for an order."""

    __tablename__ = "payments"

    payment_id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.order_id))
    amount_cents: Mapped[int]


class ShopOpened(Event):
    """The doors are open; the first event of a demo."""

    customers: int


class OrderPlaced(Event):
    """A customer has ordered something."""

    order_id: int
    customer_id: int
    item: str
    total_cents: int


class PaymentReceived(Event):
    """An order was paid."""

    order_id: int
    amount_cents: int


class OrderCancelled(Event):
    """A customer no longer wants what was ordered."""

    order_id: int
    reason: str


class PaymentDeclinedError(Exception):
    """The card was refused, so the order must not exist; carries the events whose transaction now rolls back."""

    def __init__(self, published: list[UUID]) -> None:
        """Remember what was published in vain."""
        super().__init__("The card was declined.")
        self.published = published


def create_tables(engine: Engine) -> list[int]:
    """Create the shop's schema, tables and customers where they are missing; return the customers' ids."""
    with engine.begin() as connection:
        connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
        _Base.metadata.create_all(connection)
    with Session(engine) as session, session.begin():
        if session.scalars(select(Customer).limit(1)).first() is None:
            session.add_all(Customer(name=name) for name in _CUSTOMERS)
        return list(session.scalars(select(Customer.customer_id)))


def open_doors(session: Session, customers: int) -> UUID:
    """Say that the shop is open."""
    return publish_event(session, ShopOpened(customers=customers))


def place_order(session: Session, customer_id: int, item: str) -> tuple[Order, UUID]:
    """Take an order that is paid later."""
    order = Order(customer_id=customer_id, item=item, total_cents=PRICES[item])
    session.add(order)
    session.flush()
    placed = OrderPlaced(order_id=order.order_id, customer_id=customer_id, item=item, total_cents=order.total_cents)
    return order, publish_event(session, placed)


def sell(session: Session, customer_id: int, item: str, *, is_declined: bool = False) -> list[UUID]:
    """Take an order and its payment at once.

    Raises PaymentDeclinedError when *is_declined*, after both events were published: exactly what must never arrive.
    """
    order, placed = place_order(session, customer_id, item)
    order.status = "paid"
    session.add(Payment(order_id=order.order_id, amount_cents=order.total_cents))
    paid = publish_event(session, PaymentReceived(order_id=order.order_id, amount_cents=order.total_cents))
    if is_declined:
        raise PaymentDeclinedError([placed, paid])
    return [placed, paid]


def cancel_an_order(session: Session) -> UUID | None:
    """Cancel some unpaid order; None when there is none, or all of them are being changed."""
    unpaid = select(Order).where(Order.status == "placed").limit(1).with_for_update(skip_locked=True)
    order = session.scalars(unpaid).first()
    if order is None:
        return None
    order.status = "cancelled"
    return publish_event(session, OrderCancelled(order_id=order.order_id, reason="changed my mind"))
