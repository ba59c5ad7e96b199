"""Bugs of the wing that collects: seeds, shards, interruptions, processes, policies, and the console."""

from __future__ import annotations

from tests.mutants import Mutant

COLLECT, WORKER = "latent_obs/collecting/collect.py", "latent_obs/collecting/worker.py"
PROCESSES, MODELS = "latent_obs/collecting/processes.py", "latent_obs/collecting/models.py"
POLICIES, PROGRESS = "latent_obs/collecting/policies.py", "latent_obs/progress.py"
TEST, ROBUST = "tests/collecting/test_collect.py", "tests/test_robustness.py"
ACTING = "tests/collecting/test_policies.py"

MUTANTS = [
    Mutant(
        "a shard that was interrupted twice keeps the shorter part",
        WORKER,
        "writer.rows <= before:",
        "writer.rows <= 0:",
        f"{ROBUST}::test_of_two_interrupted_parts_the_longer_stays",
    ),
    Mutant(
        "seeds do not depend on the shard's number",
        WORKER,
        "(plan.config.seed, plan.worker, number)",
        "(plan.config.seed, plan.worker, 0)",
        f"{TEST}::test_every_shard_has_seeds_of_its_own",
    ),
    Mutant(
        "seeds do not depend on the worker",
        WORKER,
        "(plan.config.seed, plan.worker, number)",
        "(plan.config.seed, 0, number)",
        f"{TEST}::test_workers_collect_different_frames",
    ),
    Mutant(
        "seeds do not depend on the seed",
        WORKER,
        "(plan.config.seed, plan.worker, number)",
        "(0, plan.worker, number)",
        f"{TEST}::test_rows_are_what_reset_and_step_returned",
    ),
    Mutant(
        "episode numbers repeat in each shard of a worker",
        WORKER,
        "plan.worker * 10**9 + number * 10**5",
        "plan.worker * 10**9",
        f"{TEST}::test_episodes_have_their_own_numbers",
    ),
    Mutant(
        "episode numbers repeat in each worker",
        WORKER,
        "plan.worker * 10**9 + number * 10**5",
        "number * 10**5",
        f"{TEST}::test_episodes_have_their_own_numbers",
    ),
    Mutant(
        "a reset in the midst of a shard takes the seed again",
        WORKER,
        "        self.env_seed = None\n",
        "",
        f"{TEST}::test_rows_are_what_reset_and_step_returned",
    ),
    Mutant(
        "the policy is not seeded anew with each episode",
        WORKER,
        "policy.reset(int(self.policy_seeds.integers(2**32)))",
        "policy.reset(0)",
        f"{TEST}::test_policies_act_differently_in_each_episode",
    ),
    Mutant(
        "a reward is stored with the row before it",
        WORKER,
        "episode, step, stored, float(reward), terminated",
        "episode, step, stored, 0.0, terminated",
        f"{TEST}::test_rows_are_what_reset_and_step_returned",
    ),
    Mutant(
        "terminated and truncated are swapped",
        WORKER,
        "float(reward), terminated, truncated)",
        "float(reward), truncated, terminated)",
        f"{TEST}::test_rows_are_what_reset_and_step_returned",
    ),
    Mutant(
        "the second signal is ignored",
        PROGRESS,
        "            raise KeyboardInterrupt\n",
        "",
        f"{ROBUST} -k second_signal",
    ),
    Mutant(
        "the first signal ends at once",
        PROGRESS,
        "        elif not stop.is_set():",
        "        elif False:",
        f"{TEST} -k interrupted_collection",
    ),
    Mutant(
        "the second signal leaves the workers alive",
        PROCESSES,
        "                worker.process.kill()\n                worker.process.join()\n",
        "                pass\n",
        f"{ROBUST} -k second_signal",
    ),
    Mutant(
        "an orphan that holds the interpreter's lock lives on",
        PROCESSES,
        "        libc.prctl(",
        "        (lambda *_: None)(",
        f"{ROBUST} -k parent_is_killed_even",
    ),
    Mutant(
        "an orphan whose environment sleeps lives on",
        PROCESSES,
        "    _die_after_parent(at_once=seconds == 0)\n",
        "",
        f"{ROBUST} -k parent_is_killed_even",
    ),
    Mutant(
        "a worker that ends without a word has done its work",
        PROCESSES,
        '            return f"{self.where} died with exit code {code}"',
        "            return None",
        f"{ROBUST} -k an_env_that_exits",
    ),
    Mutant(
        "sys.exit in a worker is no error",
        PROCESSES,
        "        except BaseException as error:\n            failure = describe(error)",
        "        except SystemExit:\n            pass\n        except Exception as error:\n"
        "            failure = describe(error)",
        f"{ROBUST} -k an_env_that_exits",
    ),
    Mutant(
        "sys.exit ends the calling program",
        COLLECT,
        "    except (Exception, SystemExit) as error:\n        return [",
        "    except Exception as error:\n        return [",
        f"{ROBUST} -k calling_program",
    ),
    Mutant(
        "a worker that somebody stopped has done its work",
        PROCESSES,
        "if self.ended.stopped and not asked:",
        "if False:",
        f"{ROBUST} -k somebody",
    ),
    Mutant(
        "a step that takes too long is not ended",
        PROCESSES,
        "worker.call_seconds > limit and",
        "False and",
        f"{ROBUST} -k takes_too_long",
    ),
    Mutant(
        "the time limit on steps counts from the beginning of the shard",
        WORKER,
        "            self.pulse.since = 0.0\n            step += 1\n",
        "            step += 1\n            self.pulse.since = begun\n",
        f"{ROBUST} -k none_on_the_whole",
    ),
    Mutant(
        "workers do not hold the lock of the folder",
        PROCESSES,
        "None if lock is None else _Lock(lock)",
        "None",
        f"{ROBUST} -k 'killing_at_any_moment and parent'",
    ),
    Mutant(
        "a mix ignores its weights",
        POLICIES,
        "p=self.chances",
        "p=None",
        f"{ACTING}::test_a_mix_draws_one_policy_an_episode_by_weight",
    ),
    Mutant(
        "sticky actions last nine steps",
        POLICIES,
        "mean_steps = 8",
        "mean_steps = 9",
        f"{ACTING}::test_sticky_actions_last_eight_steps_on_average",
    ),
    Mutant(
        "stacked latents are the newest first",
        MODELS,
        "        self._latents[:-1] = self._latents[1:]\n"
        "        self._latents[slice(None) if self._begins else -1]",
        "        self._latents[1:] = self._latents[:-1]\n"
        "        self._latents[slice(None) if self._begins else 0]",
        f"{ACTING} -k 'acts_as_in_the_wrapped_env or wrapper_shows'",
    ),
    Mutant(
        "stacked latents are carried into the next episode",
        MODELS,
        "        self._begins = True\n",
        "        pass\n",
        f"{ACTING} -k 'acts_as_in_the_wrapped_env or wrapper_shows'",
    ),
    Mutant(
        "an ONNX model takes the likeliest action instead of drawing one",
        MODELS,
        "self._rng.choice(len(chances), p=chances / chances.sum())",
        "int(np.argmax(chances))",
        f"{ACTING} -k by_its_logits",
    ),
    Mutant(
        "logits count as chances",
        MODELS,
        "np.exp(output.astype(np.float64) - output.max())",
        "output.astype(np.float64) - output.min() + 1e-9",
        f"{ACTING} -k by_its_logits",
    ),
    Mutant(
        "actions of an ONNX model may leave the space",
        MODELS,
        "action = np.clip(action, space.low, space.high)",
        "pass",
        f"{ACTING} -k answer_with_actions",
    ),
    Mutant(
        "a bomb inside torch's archive is unpacked",
        MODELS,
        "if zipfile.is_zipfile(io.BytesIO(inner)):",
        "if False:",
        f"{ACTING} -k gigabytes",
    ),
    Mutant(
        "pickles are loaded without a word",
        COLLECT,
        "                    warn_of_pickles(name)",
        "                    pass",
        f"{TEST} -k pickles",
    ),
    Mutant(
        "a model retrained under the same name goes on with another's frames",
        COLLECT,
        "        policy_files=files,\n",
        "        policy_files=None,\n",
        f"{TEST} -k again_and_again",
    ),
    Mutant(
        "names are read as markup",
        PROGRESS,
        "markup=False, emoji=False, highlight=False",
        "emoji=False, highlight=False",
        "tests/test_cli.py -k 'markup and (list or info)'",
    ),
    Mutant(
        "a command that is ended by sys.exit(0) was done",
        "latent_obs/cli.py",
        "    except SystemExit as error:\n        raise RuntimeError(",
        "    except SystemExit as error:\n        return print(",
        "tests/test_cli.py -k midst",
    ),
]
