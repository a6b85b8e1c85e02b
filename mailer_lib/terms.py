"""The words of the trade, as types: every state, outcome and reason that more than one stage talks about.

The terms are docs/architecture.md's; values are what the database and the files hold, so never rename one without a
migration.
"""

from enum import IntFlag, StrEnum


class Outcome(StrEnum):
    """What became of one message at hand-over to our MTA. A row of a snapshot has exactly one at any time.

    The books: ``frozen = injected + rejected + suppressed + failed + expired + cancelled + unknown``.
    """

    INJECTED = "injected"  # our MTA took it
    REJECTED = "rejected"  # refused for good (5xx)
    SUPPRESSED = "suppressed"  # dropped late: the person left after the snapshot was frozen
    FAILED = "failed"  # could not be rendered
    EXPIRED = "expired"  # not accepted before the send's expires_at
    CANCELLED = "cancelled"  # stopped before it was sent, or taken back out of our MTA's queue (recalled)
    UNKNOWN = "unknown"  # handed over perhaps; nobody can tell


class ExclusionReason(IntFlag):
    """Why a contact that matched the criteria is not in the snapshot: a bitmask of *all* reasons that hold."""

    UNCONFIRMED = 1
    UNSUBSCRIBED = 2
    SUPPRESSED_ADDRESS = 4
    SUPPRESSED_DOMAIN = 8
    BOUNCED = 16
    COMPLAINED = 32
    INVALID_ADDRESS = 64
    ALREADY_SENT = 128  # injected, unknown or in doubt in this edition
    ERASED = 256
    FREQUENCY_CAP = 512
    EXCLUDED_LIST = 1024
    CONTROL_GROUP = 2048
    DUPLICATE = 4096  # a second row with the same normalised address


class SubscriptionState(StrEnum):
    PENDING = "pending"  # double opt-in not answered yet
    CONFIRMED = "confirmed"
    UNSUBSCRIBED = "unsubscribed"


class ConsentAction(StrEnum):
    """What an append-only consent event says."""

    REQUESTED = "requested"  # signed up; a confirmation mail is due
    CONFIRMED = "confirmed"
    UNSUBSCRIBED = "unsubscribed"
    COMPLAINED = "complained"
    IMPORTED_OLDER = "imported-older"  # evidence kept, but a newer refusal stands


class SuppressionReason(StrEnum):
    UNSUBSCRIBED = "unsubscribed"
    COMPLAINED = "complained"
    HARD_BOUNCE = "hard-bounce"
    MANUAL = "manual"
    IMPORTED = "imported"
    ERASED = "erased"


class ContactState(StrEnum):
    ACTIVE = "active"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    INVALID = "invalid"
    ERASED = "erased"


class AttributeType(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    ENUM = "enum"  # one of the declared choices
    TEXT_LIST = "text-list"


class SendMode(StrEnum):
    DRY_RUN = "dry-run"
    TEST = "test"
    SEND = "send"


class SendState(StrEnum):
    """Life of a send. FINISHED, STOPPED, EXPIRED, REJECTED and FAILED are final until somebody triggers it again."""

    PLANNED = "planned"
    FREEZING = "freezing"  # the snapshot is being built
    AWAITING_APPROVAL = "awaiting-approval"
    APPROVED = "approved"
    RUNNING = "running"
    JUDGING = "judging"  # the test slice was sent; a person decides which variant the rest gets
    FINISHED = "finished"
    STOPPED = "stopped"
    EXPIRED = "expired"
    REJECTED = "rejected"  # by the approver
    FAILED = "failed"


class Control(StrEnum):
    """What an operator wants of a running send."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


class UnknownPolicy(StrEnum):
    """What a top-up does about messages whose outcome is unknown."""

    LEAVE = "leave"
    RESEND = "resend"  # may mail a person twice; only when the operator says so


class SnapshotState(StrEnum):
    BUILDING = "building"
    PUBLISHED = "published"


class ShardState(StrEnum):
    OPEN = "open"  # has rows that were never granted
    LEASED = "leased"
    SETTLED = "settled"  # every row has an outcome


class LeaseState(StrEnum):
    ACTIVE = "active"
    SETTLED = "settled"
    LOST = "lost"  # its server is gone; granted rows without an outcome are unknown


class ServerState(StrEnum):
    STANDBY = "standby"
    PROVISIONING = "provisioning"
    VERIFYING = "verifying"
    WARMING = "warming"
    ACTIVE = "active"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"
    FENCED = "fenced"


class HostProvider(StrEnum):
    """Where the machine of a dispatch server comes from."""

    INVENTORY = "inventory"  # one owns it
    HETZNER = "hetzner"


class HealthVerdict(StrEnum):
    WELL = "well"
    SICK = "sick"
    SILENT = "silent"  # it doesn't answer


class DkimKeyState(StrEnum):
    """Of a dispatch server's DKIM key."""

    WAITING = "waiting"  # made, to be published
    SIGNING = "signing"
    LEAVING = "leaving"  # another signs; mail that it signed is on its way
    GONE = "gone"  # its record may leave DNS


class ScaleAction(StrEnum):
    NONE = "none"
    ACTIVATE = "activate"  # a standby server whose address is warm
    PROVISION = "provision"  # a standby server that is cold, or a machine that is to be rented: adds its quota only
    DRAIN = "drain"
    RETIRE = "retire"  # after draining: a rented machine is given back, one's own goes on standby


class ScaleFinding(StrEnum):
    """Why, as one word; the reason says it in a sentence."""

    NOTHING_RUNS = "nothing-runs"
    IN_TIME = "in-time"
    NO_DEADLINE = "no-deadline"
    LATE = "late"
    LATE_FIRST_SEEN = "late-first-seen"  # looked at again before anything is done
    RECEIVERS_BIND = "receivers-bind"
    OWN_RULES_BIND = "own-rules-bind"  # pace or send window
    CANT_HELP = "cant-help"  # what there is adds too little before the deadline
    NO_MACHINE = "no-machine"
    AT_MAXIMUM = "at-maximum"
    OVER_BUDGET = "over-budget"
    COOLING_DOWN = "cooling-down"
    IN_HAND = "in-hand"  # an earlier decision isn't through
    IDLE = "idle"
    DRAINED = "drained"


class ScaleState(StrEnum):
    """Life of a decision. NOTED is that of a look without an action."""

    NOTED = "noted"
    PROPOSED = "proposed"
    APPROVED = "approved"
    REJECTED = "rejected"
    LAPSED = "lapsed"  # nobody answered in time, or it no longer holds
    APPLYING = "applying"
    APPLIED = "applied"
    FAILED = "failed"


class HostOutcome(StrEnum):
    """What a playbook, or one task of it, did on a host."""

    OK = "ok"  # it was so already
    CHANGED = "changed"
    FAILED = "failed"


class Weekday(StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class CapSpan(StrEnum):
    """The time over which a cap counts, in UTC."""

    HOUR = "hour"
    DAY = "day"


class OverQuota(StrEnum):
    """What becomes of rows that a warming server took and has no quota for on that day."""

    MOVES = "moves"  # to another server of the sending pool with quota left
    WAITS = "waits"  # for that server's next day
    EXPIRES = "expires"  # once no server of the sending pool has quota left


class ChannelKind(StrEnum):
    LOCAL = "local"
    SSH = "ssh"


class SmtpSecurity(StrEnum):
    NONE = "none"  # plain text: the MTA beside the agent
    OPPORTUNISTIC = "opportunistic"  # STARTTLS where it is offered, no certificate check
    STARTTLS = "starttls"  # required, certificate checked
    IMPLICIT = "implicit"  # TLS from the first byte, certificate checked


class MtaKind(StrEnum):
    """Whose records can settle a doubt."""

    EXIM = "exim"  # spool and main log readable by the agent
    SINK = "sink"  # our development sink: the same log format, no spool
    RELAY = "relay"  # somebody else's server: what is in doubt stays unknown


class TemplateKind(StrEnum):
    """The language that a template's layout is written in; Jinja2 runs over both."""

    MJML = "mjml"
    HTML = "html"


class FindingLevel(StrEnum):
    """Of a pre-flight finding: a send refuses on an error and says so on a warning."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class HashAlgorithm(StrEnum):
    """Of the addresses in suppression lists that others hand out."""

    SHA256 = "sha256"
    MD5 = "md5"
