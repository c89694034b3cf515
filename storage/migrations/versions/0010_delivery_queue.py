"""Deliveries in the order in which they are sent, and asked for."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.drop_index("ix_delivery_state", table_name="delivery")
    op.create_index(
        "ix_delivery_queue",
        "delivery",
        ["state", "destination", "attempts", "result_id"],
        unique=False,
    )
    op.create_index(
        "ix_delivery_unconfirmed",
        "delivery",
        ["state", "destination", "confirm_next_at", "sent_at"],
        unique=False,
    )
