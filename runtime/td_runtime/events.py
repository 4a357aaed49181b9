"""The catalogue of log events: every name the three packages emit, and what it means.

A test holds it against what the code emits and against `docs/reference/events.md`, whose table
`render_table` writes. Names are constant, `noun.past_participle`; everything variable is a field.
`python -m td_runtime.events` prints the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

__all__ = ["CATALOGUE", "COMMON_FIELDS", "RUN_FIELDS", "Event", "Level", "render_table"]

Level = Literal["debug", "info", "warning", "error"]

#: Fields of every line.
COMMON_FIELDS: Final = ("timestamp", "level", "event", "host", "pid", "worker")
#: Further fields of every line inside a run.
RUN_FIELDS: Final = ("run_id", "task", "attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One kind of log line."""

    name: str
    """`noun.past_participle`."""
    level: Level
    """The level it is usually emitted at."""
    summary: str
    """One sentence: what happened."""
    fields: tuple[str, ...]
    """What it carries beyond `COMMON_FIELDS`."""


def _event(name: str, level: Level, summary: str, *fields: str) -> Event:
    return Event(name=name, level=level, summary=summary, fields=fields)


_LOOP_END: Final = (
    "task",
    "run_id",
    "attempt",
    "replica",
    "lived_s",
    "delay_s",
    "error_type",
    "error_message",
)

_EVENTS: Final = (
    # the runtime
    _event("runtime.started", "info", "The supervisor began to start.", "version", "config",
           "data_dir", "workers", "concurrency", "control_plane", "tasks"),
    _event("runtime.ready", "info", "Gateway and workers are up; runs are claimed.",
           "control_plane"),
    _event("runtime.stop_requested", "info",
           "A signal, or a client, asked for a stop; a second one hurries it.", "signal", "count"),
    _event("runtime.drain_requested", "info",
           "No more runs are claimed; running ones get the drain time-out.", "drain_timeout_s"),
    _event("reload.requested", "info", "SIGHUP asked for the config to be read anew."),
    _event("reload.refused", "error",
           "The new config or its tasks are wrong; everything goes on as before.", "error_message",
           "where", "advice"),
    _event("reload.ignored", "warning", "Keys have changed that need a restart.", "keys", "advice"),
    _event("reload.completed", "info", "Every worker has the new config and the new code.", "tasks",
           "added", "removed"),
    _event("reload.failed", "error",
           "The new config is in force, but workers with the new code do not get ready.",
           "error_message", "advice"),
    _event("runtime.stopped", "info", "Everything has ended."),
    _event("runtime.failed", "error", "The supervisor gives up; the exit code says why.",
           "error_type", "error_message"),
    _event("task.registered", "info", "An entrypoint was imported and can be triggered.", "task",
           "entrypoint"),
    _event("task.printed", "info", "Task code or a subprocess of it printed a line.", "stream",
           "text"),
    _event("log.dropped", "warning", "Log lines were dropped here because nobody took them.",
           "count"),
    # workers
    _event("worker.started", "info", "A worker process was forked.", "number", "worker_pid"),
    _event("worker.booted", "info", "A worker is ready for runs.", "number", "worker_pid"),
    _event("worker.boot_failed", "error", "A worker could not get ready.", "error_message"),
    _event("worker.exited", "warning", "A worker process ended; `info` if it was asked to.",
           "number", "worker_pid", "status", "signal", "runs"),
    _event("worker.stalled", "warning",
           "Task code blocks the loop of its worker; `stack` says where.",
           "stalled_s", "current", "stack"),
    _event("worker.recovered", "info", "The loop of a worker that had stalled turns again.",
           "stalled_s"),
    _event("worker.stall_killed", "error", "A worker ended itself after `kill_stalled_after`.",
           "stalled_s"),
    _event("worker.killed", "warning",
           "A worker is killed for a run that ignored its end for `cancel_grace`; nobody is "
           "blamed.", "number", "worker_pid", "reason", "run_id", "task", "attempt"),
    _event("worker.silenced", "error",
           "A worker gave no answer for `kill_silent_after`, and is killed.", "number",
           "worker_pid"),
    _event("worker.retired", "info",
           "A worker is replaced in order: it has done its runs, is too large, or has old code.",
           "number", "worker_pid", "reason", "runs", "memory"),
    _event("worker.restart_scheduled", "warning", "A dead worker is replaced after a delay.",
           "number", "delay_s"),
    _event("worker.abandoned", "error", "A worker kept dying and is not replaced any more.",
           "number"),
    _event("worker.protocol_broken", "error", "A worker sent what no worker sends, and is killed.",
           "number", "error_message"),
    # the control socket
    _event("control.paused", "error",
           "A client could not be accepted, for want of descriptors or memory; the next try is in "
           "a second.", "error_message"),
    # the gateway
    _event("gateway.started", "info", "The gateway process was started.", "gateway_pid"),
    _event("gateway.opened", "info", "The gateway listens.", "address"),
    _event("gateway.ready", "info", "The gateway answers HTTP.", "gateway_pid", "port"),
    _event("gateway.exited", "error", "The gateway process ended; `info` if it was asked to.",
           "status"),
    _event("gateway.restart_scheduled", "warning", "The gateway is started again after a delay.",
           "delay_s"),
    _event("gateway.stopped", "info", "The gateway has finished its requests.", "is_clean"),
    _event("gateway.failed", "error", "The gateway could not start, or broke.", "error"),
    _event("request.failed", "error", "The gateway met an error of its own and answered 500.",
           "method", "path", "duration_s", "error"),
    _event("fault.added", "warning", "Something was broken on purpose, by `platform fault`.",
           "kind"),
    _event("fault.cleared", "info", "All faults have ended."),
    _event("records.expired", "info", "The embedded store deleted records past their age.",
           "count"),
    _event("records.expiry_failed", "error",
           "Old records could not be deleted; tried again later.", "error"),
    _event("session.run_failed", "error",
           "A message waits in a session's input, and no run could be started for it.",
           "session_id", "error"),
    # runs
    _event("run.accepted", "info", "A run was committed to the run store.", "run_id", "task",
           "parent_id"),
    _event("payload.unchecked", "warning",
           "Payloads could not be compared with type hints at trigger; their runs will be.",
           "reason"),
    _event("run.started", "info", "A worker began an attempt."),
    _event("run.waiting", "info", "A run waits for its children and freed its place.", "run_id",
           "task", "attempt"),
    _event("run.resumed", "info", "A run's children are done and it has a place again.", "run_id",
           "task", "attempt"),
    _event("run.completed", "info", "A run's output was committed.", "run_id", "task", "attempt",
           "records_lost"),
    _event("run.failed", "warning", "A run failed for good.", "run_id", "task", "attempt",
           "error_type", "error_message"),
    _event("run.retried", "warning", "An attempt failed; another one follows.", "run_id", "task",
           "attempt", "delay_s", "error_type", "error_message"),
    _event("run.requeued", "info", "A run goes back to the queue through no fault of its own.",
           "run_id", "task", "attempt", "error_message"),
    _event("run.crashed", "warning", "A run's worker died under it too often.", "run_id", "task",
           "attempt", "error_message"),
    _event("run.timed_out", "warning", "A run took longer than its `max_duration`.", "run_id",
           "task", "attempt", "error_message"),
    _event("run.canceled", "warning", "A run was cancelled.", "run_id", "task",
           "canceled_by", "attempt",
           "error_message"),
    _event("run.result_dropped", "warning",
           "An attempt reported an outcome after somebody else had been given the run.", "run_id",
           "attempt"),
    _event("hook.failed", "warning", "A hook raised; what it was told of stays as it is.", "hook",
           "error_type", "error_message"),
    _event("attempt.ended", "debug", "A worker finished an attempt and its streams.", "status",
           "records_lost"),
    _event("run.queued", "info", "A delayed run, or the next attempt of one, may start now.",
           "run_id", "task", "attempt"),
    _event("run.rescheduled", "info", "A delayed run was given another time to start.", "run_id",
           "task", "run_at"),
    _event("run.expired", "warning", "A run did not start within its `ttl`.", "run_id", "task",
           "attempt"),
    _event("run.cancel_requested", "info", "A run that executes was told to stop.", "run_id",
           "task", "attempt", "canceled_by"),
    _event("loop.started", "info", "A replica of a loop was accepted.", "task", "replica",
           "run_id"),
    _event("loop.refused", "error",
           "A replica of a loop could not be started, or canceled; it is tried again.", "task",
           "replica", "error_message"),
    _event("loop.returned", "warning",
           "A replica of a loop returned; the next one starts after `delay_s`.",
           *_LOOP_END),
    _event("loop.raised", "warning",
           "A replica of a loop raised.",
           *_LOOP_END),
    _event("loop.timed_out", "warning",
           "A replica of a loop went past `max_duration`.",
           *_LOOP_END),
    _event("loop.crashed", "warning",
           "A replica of a loop took its worker down.",
           *_LOOP_END),
    _event("loop.hung", "warning",
           "A replica of a loop blocked its worker until that was killed.",
           *_LOOP_END),
    _event("loop.expired", "warning",
           "A replica of a loop found no place within its `ttl`.",
           *_LOOP_END),
    _event("loop.canceled", "warning",
           "A replica of a loop was canceled; the next one starts all the same.",
           *_LOOP_END),
    _event("schedule.ticked", "info", "A scheduled task was due, and its run was accepted.", "task",
           "due_at"),
    _event("schedule.ticks_missed", "warning",
           "Ticks of a schedule are given up: nobody was there for them.", "task", "count"),
    _event("schedule.tick_refused", "error",
           "The run of a tick was refused; it is tried again.", "task", "error_message"),
    _event("store.full", "error",
           "The disk is full: new runs are refused, outcomes are kept until there is room.",
           "path", "error_message"),
    _event("store.restored", "info", "The disk under the run store has room again.", "waiting"),
    _event("store.changes_dropped", "error",
           "The run store was closed while its disk was full; these runs are done again.", "path",
           "changes"),
    _event("store.pruned", "info", "Finished runs past their retention were deleted.", "runs"),
    _event("store.commit_slow", "warning", "The disk took long to commit to the run store.",
           "duration_ms", "changes"),
    # credentials
    _event("credential.minted", "info", "A PUT gave a new credential.", "slot", "credential_id",
           "seconds", "used"),
    _event("credential.shared", "debug", "A credential another process minted was taken over.",
           "slot", "credential_id"),
    _event("credential.evicted", "info", "The current credential of a slot was removed.", "slot",
           "credential_id", "reason"),
    _event("credential.eviction_refused", "debug",
           "A late failure named a credential that is no longer current; nothing was removed.",
           "slot", "credential_id", "reason"),
    _event("credential.refreshed", "info", "A credential was replaced ahead of its end.", "slot",
           "credential_id", "seconds", "used"),
    _event("credential.remint_unchanged", "error", "A PUT returned the token just refused.",
           "slot"),
    _event("credential.mint_failed", "warning", "A PUT failed; whoever waited got the error.",
           "slot", "error", "status", "retryable", "failures", "retry_in"),
    _event("credential.mint_backed_off", "debug",
           "No PUT was tried, for the last ones of this slot failed.", "slot", "seconds"),
    _event("credential.row_refused", "warning",
           "A foreign, forged or corrupt row of the shared cache was ignored.", "slot", "reason"),
    _event("credential.reset", "info", "Every credential of this API key was dropped."),
    _event("cache.degraded", "warning",
           "The shared cache cannot be used; credentials are kept in this process alone.", "slot",
           "reason"),
    _event("cache.restored", "info", "The shared cache can be used again.", "slot"),
    _event("lock.timed_out", "warning", "Another process held a slot's lock beyond its bound.",
           "slot", "seconds"),
    # notices
    _event("notice.relayed", "info", "A worker's eviction was told to the other workers.", "slot",
           "credential_id", "sender_worker", "receivers"),
    _event("notice.received", "info", "Another worker's eviction reached this one.", "slot",
           "credential_id", "reason", "sender_pid", "dropped"),
    _event("notice.dropped", "warning", "Workers were too far behind to be told of an eviction.",
           "slot", "credential_id", "workers"),
    # streams
    _event("stream.credential_renewed", "info",
           "Records that were refused are sent again with a new credential.", "slot",
           "credential_id"),
    _event("stream.append_retried", "warning", "A batch could not be appended and is tried again.",
           "slot", "retry", "delay_s", "reason"),
    _event("stream.write_failed", "error", "Records were given up; their writers get the error.",
           "slot", "writers", "records", "reason"),
    _event("stream.eviction_failed", "warning", "A refused credential could not be evicted.",
           "slot", "reason"),
    _event("stream.read_retried", "info", "A reader lost its connection and takes it up again.",
           "retry", "delay_s", "reason"),
    _event("input.tail_paused", "warning",
           "So many records wait to be taken that no more are read for now.", "source", "buffered"),
    _event("input.tail_failed", "error", "A channel or an input stream cannot be read.", "source",
           "reason"),
    _event("input.handler_failed", "error", "A handler raised; the next record comes all the same.",
           "source", "reason"),
    _event("stream.misdirected", "warning",
           "A chat agent used its run's streams, which its chat does not show; said once.",
           "method", "advice"),
    _event("chat.turn_completed", "info", "A turn of a chat agent has ended.", "chat_id", "turn",
           "trigger", "stopped", "failed"),
    _event("chat.turn_failed", "error", "A turn failed; its client was told, the agent lives on.",
           "chat_id", "turn", "exception"),
    _event("chat.write_failed", "error", "A chunk was refused; its handle has the error.",
           "chat_id", "chunk_type", "reason"),
    _event("chat.hook_failed", "error", "A hook raised where its turn could not fail any more.",
           "chat_id", "hook", "exception"),
    _event("chat.observing_failed", "error",
           "The chat cannot be read: a handler of `chat.messages.on` is never called.", "chat_id",
           "reason"),
    _event("chat.handler_ignored_stop", "warning",
           "A handler went on after a stop; it is heard no more.", "chat_id", "turn"),
    _event("chat.input_ignored", "warning", "A client's message cannot be understood.", "chat_id",
           "seq", "reason"),
    _event("chat.token_failed", "warning", "A turn ended without a fresh token for its client.",
           "chat_id", "reason"),
    _event("chat.trim_failed", "warning", "What an earlier turn left could not be dropped.",
           "chat_id", "reason"),
    _event("chat.suspended", "debug", "An agent waits for a message, its place freed.", "chat_id"),
    _event("chat.ended", "info", "An agent's run has held its conversation.", "chat_id", "turns",
           "reason", "handed_over"),
    _event("chat.hand_over_failed", "warning",
           "A run ended with messages that wait, and no run took them over; the next message will.",
           "chat_id", "reason"),
    _event("stream.drained", "debug", "The streams a run had not waited for were drained.",
           "streams", "records_lost"),
    _event("stream.source_failed", "error",
           "A source merged into a writer raised; the others and the writer go on.", "slot"),
    _event("stream.writer_failed", "warning",
           "One writer failed by itself, as by a chunk too large; the others go on.",
           "slot", "reason"),
    _event("stream.records_lost", "error", "A run ended without some records it had written.",
           "records"),
)  # fmt: skip

#: Every event by name.
CATALOGUE: Final[Mapping[str, Event]] = MappingProxyType({event.name: event for event in _EVENTS})


def render_table() -> str:
    """The table of `docs/reference/events.md`, in Markdown."""
    lines = ["| event | level | what happened | fields |", "|---|---|---|---|"]
    for event in sorted(CATALOGUE.values(), key=lambda event: event.name):
        fields = ", ".join(f"`{name}`" for name in event.fields)
        lines.append(f"| `{event.name}` | {event.level} | {event.summary} | {fields} |")

    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_table(), end="")
