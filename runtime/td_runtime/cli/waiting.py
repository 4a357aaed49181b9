"""Waiting for a run beside other things."""

from td_runtime.control import ControlClient, RunView, WaitForRun

__all__ = ["wait_for_run"]


async def wait_for_run(control: ControlClient, run_id: str) -> RunView:
    """Return a run once it has an outcome.

    Waits on the loop: a thread that waits could not be called off by Ctrl-C.

    Raises:
        ControlRefusedError: There is no such run.
        NotRunningError: The supervisor went away.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    answered = asyncio.Event()
    control.send(WaitForRun(run_id=run_id))
    loop.add_reader(control.fileno(), answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(control.fileno())

    return control.receive(RunView)
