"""What is in `data` of an event, by its event type.

The site publishes these, and the simulated market of `trio-odin publish` does with exactly these
keys, in this order. The server sends any JSON: it does not look into `data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

TokenId: TypeAlias = Annotated[str, Meta(description="The symbol.")]
Timestamp: TypeAlias = Annotated[int, Meta(description="When it was made, in Unix milliseconds.")]
Source: TypeAlias = Annotated[str, Meta(description="`simulator`, if the market is simulated.")]
Nonce: TypeAlias = Annotated[str, Meta(description="16 hexadecimal digits.")]


class Trade(msgspec.Struct, tag_field="type", tag="price:update"):
    """A trade, and what is known of the token after it.

    Attributes:
        price: the price of the trade, with up to 6 decimals.
        volume24h: what was traded in the last 24 hours.
        marketCap: the price times the supply.
        priceChange24h: percent, with 2 decimals; negative if the price fell.
    """

    tokenId: TokenId  # noqa: N815
    price: float
    volume24h: int
    marketCap: int  # noqa: N815
    priceChange24h: float  # noqa: N815
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Liquidity(msgspec.Struct, tag_field="type", tag="liquidity:update"):
    """Liquidity was added to the pool of a token, or removed.

    Attributes:
        action: which of the two.
        amount: how much.
        totalLiquidity: what is in the pool after it.
    """

    tokenId: TokenId  # noqa: N815
    action: Literal["add", "remove"]
    amount: int
    totalLiquidity: int  # noqa: N815
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Metadata(msgspec.Struct, tag_field="type", tag="metadata:update"):
    """The description of a token has changed.

    Attributes:
        name: its name for people.
        description: a sentence.
        website: the address of its page.
    """

    tokenId: TokenId  # noqa: N815
    name: str
    description: str
    website: str
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Social(msgspec.Struct, tag_field="type", tag="social:update"):
    """What people say about a token.

    Attributes:
        followers: how many follow it.
        comments: how many comments there are.
        sentiment: from -1, bad, to 1, good, with 2 decimals.
    """

    tokenId: TokenId  # noqa: N815
    followers: int
    comments: int
    sentiment: float
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Favorites(msgspec.Struct, tag_field="type", tag="favorites:update"):
    """A user has added a token to the favorites, or removed it.

    Attributes:
        change: 1 or -1.
        favorites: how many have it among their favorites after that.
    """

    tokenId: TokenId  # noqa: N815
    change: Literal[-1, 1]
    favorites: int
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Creation(msgspec.Struct, tag_field="type", tag="creation:new"):
    """Somebody has created a token, which is paid for with this one.

    Attributes:
        createdId: the symbol of the new one.
        creator: the account that created it.
        supply: how many of it there are.
    """

    tokenId: TokenId  # noqa: N815
    createdId: str  # noqa: N815
    creator: str
    supply: int
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Candle(msgspec.Struct, tag_field="type", tag="candle:update"):
    """The prices of a token in one minute: so far, or for good.

    Attributes:
        interval: how long it is: `1m`.
        openTime: when it began, in Unix milliseconds.
        closeTime: when it ends, in Unix milliseconds: the last one of it.
        open: the first price; without a trade, the last one before.
        high: the highest price.
        low: the lowest price.
        close: the last price.
        volume: what was traded.
        trades: how many trades there were.
        isFinal: whether it has ended.
    """

    tokenId: TokenId  # noqa: N815
    interval: Literal["1m"]
    openTime: int  # noqa: N815
    closeTime: int  # noqa: N815
    open: float
    high: float
    low: float
    close: float
    volume: int
    trades: int
    isFinal: bool  # noqa: N815
    timestamp: Timestamp
    source: Source
    nonce: Nonce


class Balance(msgspec.Struct, tag_field="type", tag="balances:update"):
    """What an account has of a token has changed.

    Attributes:
        account: the account.
        change: by how much; negative if it has less.
        balance: what it has after that.
    """

    tokenId: TokenId  # noqa: N815
    account: str
    change: float
    balance: float
    timestamp: Timestamp
    source: Source
    nonce: Nonce


# By event type, the second part of a channel.
PAYLOADS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "trade": Trade,
    "liquidity": Liquidity,
    "metadata": Metadata,
    "social": Social,
    "favorites": Favorites,
    "creation": Creation,
    "analytics": Candle,
    "balances": Balance,
}
EVENT_TYPES: Final = tuple(PAYLOADS)
