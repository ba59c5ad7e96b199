"""Bugs in the arithmetic of the benchmarks' claims."""

from __future__ import annotations

from tests.mutants import Mutant

RL = "tests/test_benchmarks_rl.py"
REPORTED = "tests/test_benchmarks_report.py"
REPORT = "benchmarks/rl/report.py"
CAR = "benchmarks/rl/car_racing.py"
AGENTS = "benchmarks/rl/agents.py"
TRAIN = "benchmarks/rl/train_agent.py"
RANDOM = "benchmarks/rl/random_play.py"
RECORDS = "benchmarks/rl/records.py"

IQM = f"{REPORTED}::test_the_iqm_leaves_out_a_quarter_on_either_side"
INTERVAL = f"{REPORTED}::test_the_interval_leaves_out_a_fortieth_on_either_side"
SPREAD = f"{REPORTED}::test_the_interval_is_that_of_the_resampled_seeds"
TIME = f"{REPORTED}::test_the_time_to_a_return_is_that_of_the_iqm_of_all_seeds"
CURVE = f"{REPORTED}::test_a_curve_keeps_the_last_return_until_the_next"
TABLE = f"{REPORTED}::test_the_report_finds_the_iqm_and_the_time_to_the_pixels_return"
CHANCE = f"{REPORTED}::test_latents_are_not_compared_with_pixels_that_play_like_chance"
RECORDED = f"{REPORTED}::test_the_recorded_runs_give_the_recorded_report"
PLAY = f"{RL}::test_random_play_is_of_whole_games_with_true_rewards"
RUN = f"{RL}::test_a_run_writes_what_it_reached"
CONTROLLERS = f"{RL}::test_controllers_have_the_papers_sizes_and_ranges"
DRIVES = f"{RL}::test_a_controller_drives_and_gives_up"
TRIALS = f"{RL}::test_an_agent_is_evaluated_on_whole_games"
ATARI = f"{RL}::test_a_recorded_game_of_atari_is_whole_and_its_rewards_are_true"
SKIP = f"{RL}::test_leaving_out_frames_that_nobody_sees_changes_nothing"
CHARGED = f"{RL}::test_an_agent_that_gives_up_is_charged"
INDEX = "tests/test_benchmarks.py::test_the_index_has_every_script_and_every_result"
HUNDRED = "benchmarks/rl/atari_100k.py"
NORMALISED = f"{RL}::test_scores_are_normalised_by_random_play_and_the_human"
MACHINE = "tests/test_benchmarks.py::test_the_machine_is_told_by_its_model_and_the_flags_that_matter"

MUTANTS = [
    Mutant(
        "A normalised score of 1 is the human's distance from zero.",
        HUNDRED,
        "/ (human - random)",
        "/ human",
        NORMALISED,
    ),
    Mutant(
        "The median over games is that of all runs' mean.",
        HUNDRED,
        "float(np.median([",
        "float(np.mean([",
        NORMALISED,
    ),
    Mutant(
        "Seeds are drawn once for all games.",
        HUNDRED,
        "[rng.choice(runs, len(runs)) for runs in table]",
        "[runs for runs in table]",
        f"{RL}::test_seeds_are_drawn_anew_within_each_game",
    ),
    Mutant(
        "DQN learns from single steps.",
        AGENTS,
        '"n_steps": 10',
        '"n_steps": 1',
        f"{RL}::test_dqn_learns_once_for_each_step_and_its_settings_are_kept",
    ),
    Mutant(
        "QR-DQN learns from single steps.",
        AGENTS,
        '"n_steps": 3',
        '"n_steps": 1',
        f"{RL}::test_qrdqn_learns_once_for_four_steps",
    ),
    Mutant(
        "A run goes on with the refreshed encoder of another run.",
        "benchmarks/rl/train_agent.py",
        "record.sha256.startswith(known)",
        "record.sha256 is not None",
        f"{RL} -k refreshed_encoder_and_with_no_other",
    ),
    Mutant(
        "A finished run counts as one with a refreshed encoder.",
        "benchmarks/rl/train_agent.py",
        '"finished" not in about and record',
        "record",
        f"{RL} -k refreshed_encoder_and_with_no_other",
    ),
    Mutant(
        "A run is at a return only when it is past it.",
        "benchmarks/rl/long_runs.py",
        "run.mean_return >= wanted",
        "run.mean_return > wanted",
        "tests/test_benchmarks_report.py -k long_runs",
    ),
    Mutant("The IQM is the mean.", REPORT, "cut = len(scores) // 4", "cut = 0", IQM),
    Mutant("The IQM leaves out a third.", REPORT, "cut = len(scores) // 4", "cut = len(scores) // 3", IQM),
    Mutant("The IQM does not sort.", REPORT, "np.sort(scores, axis=0)[cut", "np.asarray(scores)[cut", IQM),
    Mutant("The IQM sorts seeds along the curve.", REPORT, "np.sort(scores, axis=0)", "np.sort(scores)", IQM),
    Mutant("The interval is of 90%.", REPORT, "[2.5, 97.5]", "[5.0, 95.0]", INTERVAL),
    Mutant("The interval is of all resamples.", REPORT, "[2.5, 97.5]", "[0.0, 100.0]", INTERVAL),
    Mutant(
        "The interval is of the mean, not of the IQM.",
        REPORT,
        "means = np.stack([iqm(scores[pick]) for pick in picks])",
        "means = np.stack([scores[pick].mean(axis=0) for pick in picks])",
        INTERVAL,
    ),
    Mutant(
        "A resample has half as many seeds.",
        REPORT,
        "size=(RESAMPLES, len(scores))",
        "size=(RESAMPLES, max(1, len(scores) // 2))",
        SPREAD,
    ),
    Mutant(
        "A return is reached only when it is passed.",
        REPORT,
        "means >= threshold - 1e-9",
        "means > threshold",
        TIME,
    ),
    Mutant(
        "The time to a return is that of the last second above it.",
        REPORT,
        "return float(grid[reached[0]])",
        "return float(grid[reached[-1]])",
        TIME,
    ),
    Mutant(
        "The time to a return is that of the mean row before.",
        REPORT,
        'rows = [np.searchsorted(run.seconds, grid, side="right") - 1 for run in runs]',
        'rows = [np.searchsorted(run.seconds, grid, side="left") - 1 for run in runs]',
        TIME,
    ),
    Mutant(
        "The time to a return counts before all runs have one.",
        REPORT,
        "begin = max(run.seconds[_first(run)] for run in runs)",
        "begin = min(run.seconds[_first(run)] for run in runs)",
        TIME,
    ),
    Mutant(
        "A curve goes as far as the longest run.",
        REPORT,
        "min(getattr(run, axis)[-1] for run in runs)",
        "max(getattr(run, axis)[-1] for run in runs)",
        CURVE,
    ),
    Mutant(
        "A curve shows the next row.",
        REPORT,
        'side="right") - 1 for run in runs]\n    return grid',
        'side="right") for run in runs]\n    return grid',
        CURVE,
    ),
    Mutant(
        "Steps a second are of the first run.",
        REPORT,
        "sum(run.steps[-1] for run in runs) / sum(getattr(run, clock)[-1] for run in runs)",
        "runs[0].steps[-1] / runs[0].seconds[-1]",
        f"{TABLE} {RECORDED}",
    ),
    Mutant(
        "The speed on the CPU's clock is that of the wall's.",
        REPORT,
        'steps_per_cpu_second=rate(runs, "cpu_seconds")',
        'steps_per_cpu_second=rate(runs, "seconds")',
        TABLE,
    ),
    Mutant(
        "The encoder's own time is left out.",
        REPORT,
        "else reached + cost",
        "else reached",
        TABLE,
    ),
    Mutant(
        "Shares are of the arm's own time.",
        REPORT,
        "seconds / row.pixel_seconds",
        "row.pixel_seconds / seconds",
        TABLE,
    ),
    Mutant(
        "The threshold is the best seed of pixels.",
        REPORT,
        'threshold = float(iqm(final["pixels"]))',
        'threshold = float(final["pixels"].max())',
        TABLE,
    ),
    Mutant(
        "The final return is the best of the run.",
        REPORT,
        "np.array([run.mean_return[-1] for run in runs])",
        "np.array([np.nanmax(run.mean_return) for run in runs])",
        RECORDED,
    ),
    Mutant(
        "Pixels that play like chance are compared with.",
        REPORT,
        "random) is not False",
        "random) is not 1",
        CHANCE,
    ),
    Mutant(
        "Whatever is above random play's mean has learned.",
        REPORT,
        "random.mean + LEARNED * random.std",
        "random.mean",
        CHANCE,
    ),
    Mutant(
        "Whether an arm has learned is asked of the interval's upper end.",
        REPORT,
        "learned=has_learned(low, random)",
        "learned=has_learned(high, random)",
        CHANCE,
    ),
    Mutant("A recorded curve has three digits.", RECORDS, ":.10g}", ":.3g}", f"{TABLE} {RECORDED}"),
    Mutant(
        "A later run does not replace the recorded one.",
        REPORT,
        "known |= {run.name: run for run in read_runs(folder)}",
        "known = {run.name: run for run in read_runs(folder)} | known",
        TABLE,
    ),
    Mutant(
        "Random play's deviation is that of the mean.",
        RECORDS,
        "np.std(returns, ddof=1)",
        "np.std(returns, ddof=1) / len(returns) ** 0.5",
        PLAY,
    ),
    Mutant(
        "Random play's deviation divides by n.", RECORDS, "np.std(returns, ddof=1)", "np.std(returns)", PLAY
    ),
    Mutant(
        "Random play always does the same.",
        RANDOM,
        "env.step(env.action_space.sample())",
        "env.step(env.action_space.sample() * 0)",
        PLAY,
    ),
    Mutant("A run's return is of its last ten games.", TRAIN, "deque(maxlen=100)", "deque(maxlen=10)", RUN),
    Mutant(
        "Half of the trials are played.",
        CAR,
        "model, venv, args.trials, deterministic",
        "model, venv, args.trials // 2, deterministic",
        TRIALS,
    ),
    Mutant(
        "The mean of the trials is their median.",
        CAR,
        '"mean": float(np.mean(returns))',
        '"mean": float(np.median(returns))',
        TRIALS,
    ),
    Mutant(
        "The spread of the trials is that of their mean.",
        CAR,
        '"std": float(np.std(returns))',
        '"std": float(np.std(returns)) / len(returns) ** 0.5',
        TRIALS,
    ),
    Mutant("Giving up costs nothing in CMA-ES.", CAR, "STEP_COST = 100, 0.1", "STEP_COST = 100, 0.0", DRIVES),
    Mutant("Gas is in [-1, 1].", CAR, "(values[:, 1] + 1) / 2", "values[:, 1]", CONTROLLERS),
    Mutant(
        "Recorded returns of Atari are clipped.",
        AGENTS,
        "    env = Monitor(env)\n    if family",
        "    env = Monitor(ClipRewardEnv(env))\n    if family",
        ATARI,
    ),
    Mutant(
        "Recorded games of Atari are single lives.",
        AGENTS,
        "env = EpisodicLifeEnv(NoopResetEnv(env, noop_max=30))",
        "env = Monitor(EpisodicLifeEnv(NoopResetEnv(env, noop_max=30)))",
        ATARI,
    ),
    Mutant(
        "Skipped frames' rewards are lost.", AGENTS, "total += float(reward)", "total = float(reward)", SKIP
    ),
    Mutant(
        "Giving up is not charged.",
        AGENTS,
        "float(reward) - self.charge, True",
        "float(reward), True",
        CHARGED,
    ),
    Mutant("The index lacks a script.", "benchmarks/README.md", "`rl/refresh.py`", "`rl/refresh`", INDEX),
    Mutant(
        "The index links a result that is gone.",
        "benchmarks/README.md",
        "results/resize.md",
        "results/size.md",
        INDEX,
    ),
    Mutant(
        "A flag counts as part of a longer one.",
        "benchmarks/machine.py",
        "flags.update(value.split())",
        "flags.update(f for f in FLAGS if f in value)",
        MACHINE,
    ),
]
