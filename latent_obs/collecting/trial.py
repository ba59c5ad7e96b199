"""Tries an environment and a policy out before any worker starts: what is wrong is said once, and early."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.models import warn_of_pickles
from latent_obs.collecting.policies import make_policy, parse_mix, policy_files
from latent_obs.collecting.processes import (
    GRACE_SECONDS,
    begin_worker,
    ctrl_c_held_back,
    died,
    end_group,
    end_if_imported_again,
)
from latent_obs.collecting.sources import open_env
from latent_obs.collecting.worker import Pulse, describe, place
from latent_obs.data.shards import action_type
from latent_obs.frames import check_frame_space, preprocess
from latent_obs.progress import say, stop_on_signals

Files = dict[str, str] | None


class CollectError(RuntimeError):
    """A worker failed; the message says why, and committed shards are intact."""


def try_out(config: CollectConfig, pulse: Pulse) -> Files:
    """Find a wrong id, space or policy in this process.

    Returns:
        A digest of each file that the policy uses.
    """
    try:
        with pulse.during("constructor"):
            env = open_env(
                config.env_id, config.env_kwargs, config.key, render=config.render, wrapper=config.wrapper
            )
        try:
            check_frame_space(env.observation_space, "latent-obs collect", env)
            action_type(env.action_space)
            for name, _ in parse_mix(config.policy):
                if name.endswith(".zip"):
                    warn_of_pickles(name)
            make_policy(config.policy, env, config.policy_encoder, config.policy_normalize)
            files = policy_files(config.policy, env, config.policy_encoder)
            with pulse.during("reset"):
                obs, _ = env.reset(seed=config.seed)
            preprocess(obs, config.frame_spec)
        finally:
            with pulse.during("close"):
                env.close()
    except SystemExit as error:
        raise _nothing_from(config.env_id, describe(error)) from error
    return files


def try_out_in_process(config: CollectConfig) -> Files:
    """Do the same in a process of its own, which can be ended whatever the environment does.

    Raises:
        CollectError: If the environment does not answer within the ``step_timeout``, or ends the process, or
            raises what the calling process may not be able to.
        KeyboardInterrupt: After a signal.
        Exception: Other errors as they are.
    """
    end_if_imported_again()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    pulse = context.RawValue(Pulse)
    process: BaseProcess = context.Process(target=_process_main, args=(config, sender, pulse, sys.path))
    with stop_on_signals() as stop:
        try:
            with ctrl_c_held_back():
                process.start()
            sender.close()
            while not wait([receiver, process.sentinel], timeout=0.2):
                if stop.is_set():
                    say(f"The environment was being tried out{_state(pulse)}. Nothing was collected.")
                    raise KeyboardInterrupt
                if config.step_timeout is not None and pulse.seconds > config.step_timeout:
                    limit = f"the {config.step_timeout:g} s of --step-timeout"
                    raise _nothing_from(config.env_id, f"its {pulse.call} took longer than {limit}")
            try:
                found, told = receiver.recv()
            except EOFError:
                process.join()
                reason = f"the process that tried it out {died(process.exitcode, pulse)}"
                raise _nothing_from(config.env_id, reason) from None
            process.join(GRACE_SECONDS)  # it ends by itself, unless something of the environment's keeps it
            if stop.is_set():  # by a signal in the last moments of the trial
                raise KeyboardInterrupt
        finally:
            if process.pid is not None:
                end_group(process)
                process.join()
    for message, category in told:
        warnings.warn(message, category, stacklevel=4)
    if isinstance(found, Exception):
        raise found
    files: Files = found
    return files


def _state(pulse: Pulse) -> str:
    return f": its {pulse.call} has not returned for {pulse.seconds:.0f} s" if pulse.seconds else ""


def _nothing_from(env_id: str, reason: str) -> CollectError:
    return CollectError(f"Nothing was collected from {env_id}: {reason}.")


@contextmanager
def naming_the_culprit(env_id: str) -> Iterator[None]:
    """Turn what an environment or a policy raises into an error that names the environment and the line.

    Raises:
        CollectError: For errors from outside this package. Its own errors, which say what to do, and missing
            packages pass as they are.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if not place(error):
            raise
        raise _nothing_from(env_id, describe(error)) from error


def _process_main(config: CollectConfig, pipe: Connection, pulse: Pulse, user_path: list[str]) -> None:
    """Try out, and send what came of it, and the warnings."""
    found: Any
    with begin_worker(user_path, 0.0), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with naming_the_culprit(config.env_id):
                found = try_out(config, pulse)
        except Exception as error:
            found = error
        pipe.send((_portable(found, config), [(str(w.message), w.category) for w in told]))


def _portable(found: Any, config: CollectConfig) -> Any:
    """Return what can be sent in place of an error of a class that cannot."""
    try:
        pickle.loads(pickle.dumps(found))
    except Exception:
        return _nothing_from(config.env_id, describe(found))
    return found
