"""Bugs of frames folders and latents folders, and of what writes and reads them."""

from __future__ import annotations

from tests.mutants import Mutant

DATA = "latent_obs/data"
FOLDER, SHUFFLE = "tests/data/test_folder.py", "tests/data/test_shuffle.py"
PROVENANCE, CHECK, CURATE = (
    "tests/data/test_provenance.py",
    "tests/data/test_check.py",
    "tests/data/test_curate.py",
)
ENCODE = "tests/collecting/test_encode.py"
STORAGE = "tests/data/test_storage.py::test_a_link_under_a_temporary_name_is_not_followed"
FORCED = "tests/data/test_storage.py::test_a_file_is_forced_to_disk_before_it_gets_its_name"

MUTANTS = [
    # LeRobot datasets, and frames on the Hub.
    Mutant(
        "a LeRobot dataset shows what came of an action and not what was seen before",
        f"{DATA}/lerobot.py",
        "slice(start, end - 1), slice(start + 1, end)",
        "slice(start + 1, end), slice(start + 1, end)",
        "tests/data/test_lerobot.py",
    ),
    Mutant(
        "the images of a LeRobot dataset are JPEG",
        f"{DATA}/lerobot.py",
        'cv2.imencode(".png"',
        'cv2.imencode(".jpg"',
        "tests/data/test_lerobot.py",
    ),
    Mutant(
        "frames pushed again lie beside those that are gone",
        "latent_obs/push.py",
        "if name.startswith(_DATASET_FOLDERS):",
        "if name.startswith(()):",
        "tests/data/test_push.py",
    ),
    # What identifies a collection.
    Mutant(
        "the digests of a policy's files are no part of a collection's identity",
        f"{DATA}/provenance.py",
        "if name in _ALWAYS or value is not None}",
        'if name in _ALWAYS or (value is not None and name != "policy_files")}',
        PROVENANCE,
    ),
    Mutant(
        "two cameras of one environment are one origin",
        f"{DATA}/provenance.py",
        "return replace(self, workers=None,",
        "return replace(self, key=None, workers=None,",
        PROVENANCE,
    ),
    Mutant(
        "the same episodes with other shard sizes are another origin",
        f"{DATA}/provenance.py",
        "workers=None, shard_rows=None, split=None)",
        "split=None)",
        PROVENANCE,
    ),
    Mutant(
        "an identity says null for what it does not have, so old encoders are not recognised",
        f"{DATA}/provenance.py",
        "for name, value in values.items() if name in _ALWAYS or value is not None}",
        "for name, value in values.items()}",
        PROVENANCE,
    ),
    Mutant(
        "a billion workers are believed",
        f"{DATA}/provenance.py",
        "if found[name] is not None and not 1 <= found[name] <= most:",
        "if found[name] is not None and not 1 <= found[name]:",
        PROVENANCE,
    ),
    Mutant(
        "latents are kept whatever frames they came from",
        "latent_obs/collecting/encode.py",
        "and finished.metadata.items() <= about.items():",
        'and finished.metadata["encoder"] == about["encoder"]:',
        PROVENANCE,
    ),
    # Numbers and seeds.
    Mutant(
        "episode numbers repeat across the shards of a worker",
        "latent_obs/collecting/worker.py",
        "plan.worker * 10**9 + number * 10**5",
        "plan.worker * 10**9",
        FOLDER,
    ),
    Mutant(
        "seeds do not depend on the shard's number",
        "latent_obs/collecting/worker.py",
        "np.random.SeedSequence((plan.config.seed, plan.worker, number))",
        "np.random.SeedSequence((plan.config.seed, plan.worker))",
        FOLDER,
    ),
    # Choosing and reading.
    Mutant(
        "medians are means",
        f"{DATA}/folder.py",
        "np.median(self.take(picked), 0)",
        "np.mean(self.take(picked), 0)",
        FOLDER,
    ),
    Mutant(
        "medians read every row group",
        f"{DATA}/folder.py",
        "min(count, len(mine)))",
        "len(mine))",
        FOLDER,
    ),
    Mutant(
        "a sample comes from the beginning",
        f"{DATA}/folder.py",
        "ranks = rng.permutation(total)[:count]",
        "ranks = np.arange(total)[:count]",
        FOLDER,
    ),
    Mutant(
        "a sample of a large folder comes in order",
        f"{DATA}/folder.py",
        "            places[order] = places.copy()",
        "            pass",
        FOLDER,
    ),
    Mutant(
        "the order of a sample is its inverse",
        f"{DATA}/folder.py",
        "            places[order] = places.copy()",
        "            places = order",
        FOLDER,
    ),
    Mutant(
        "held-out episodes are trained on",
        f"{DATA}/folder.py",
        "[episode for episode in counts if episode not in held_out]",
        "list(counts)",
        FOLDER,
    ),
    Mutant(
        "a split may hold out everything",
        f"{DATA}/folder.py",
        "for episode in shuffled[:-1].tolist():",
        "for episode in shuffled.tolist():",
        FOLDER,
    ),
    Mutant(
        "rows of other episodes count as kept at the edge of a run",
        f"{DATA}/index.py",
        "* np.append(keep, False)[run]",
        "",
        FOLDER,
    ),
    Mutant(
        "episodes come in the order of their numbers, whatever shard they are in",
        f"{DATA}/index.py",
        "np.lexsort((numbers, self._in_shard[first]))",
        "np.argsort(numbers)",
        FOLDER,
    ),
    Mutant(
        "the index is made anew at each call",
        f"{DATA}/folder.py",
        "    @cached_property\n    def _index",
        "    @property\n    def _index",
        FOLDER,
    ),
    # Shuffling.
    Mutant(
        "the order of reading and of drawing share a stream",
        f"{DATA}/shuffle.py",
        "_stream(seed, epoch, 1 + number)",
        "_stream(seed, epoch, number)",
        SHUFFLE + "::test_the_order_of_reading_and_the_order_of_drawing_are_independent",
    ),
    Mutant(
        "every pass has the same order",
        f"{DATA}/shuffle.py",
        "_stream(seed, epoch, 0)",
        "_stream(seed, 0, 0)",
        SHUFFLE + "::test_passes_differ_from_each_other",
    ),
    Mutant(
        "a process of a team keeps the rows that it receives in the order of their senders",
        f"{DATA}/shuffle.py",
        'by_sender = taken[np.argsort(owners[taken], kind="stable")]',
        "by_sender = taken",
        SHUFFLE + "::test_a_team_draws_the_batches_of_one_process",
    ),
    Mutant(
        "an error of one process of a team stays its own",
        f"{DATA}/shuffle.py",
        "        team.agree(error)\n",
        "        team.agree(None)\n",
        SHUFFLE + "::test_an_error_of_one_process_of_a_team_ends_all",
    ),
    Mutant(
        "the foreground is that of another game",
        f"{DATA}/shuffle.py",
        "self._medians[shard.env_id]",
        "next(iter(self._medians.values()))",
        SHUFFLE + "::test_the_foreground_is_what_differs_from_the_games_own_median_and_what_changes",
    ),
    Mutant(
        "what changes between two episodes counts as movement",
        f"{DATA}/shuffle.py",
        "    steps &= (episodes[1:] == episodes[:-1])[:, None, None]\n",
        "",
        SHUFFLE + "::test_the_foreground_is_what_differs_from_the_games_own_median_and_what_changes",
    ),
    # Files.
    Mutant(
        "a shard is not forced to disk before it gets its name",
        f"{DATA}/storage.py",
        "            os.fsync(self.stream.fileno())\n",
        "",
        FORCED,
    ),
    Mutant(
        "the name of a shard is not forced to disk",
        f"{DATA}/storage.py",
        "            sync_folder(self.location.parent)\n",
        "",
        FORCED,
    ),
    Mutant(
        "a shard is written under its own name",
        f"{DATA}/storage.py",
        'location.with_name(f".{location.name}.tmp")',
        "location",
        FORCED,
    ),
    Mutant(
        "a config is not forced to disk",
        "latent_obs/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        FORCED,
    ),
    Mutant(
        "a link under a temporary name is followed",
        "latent_obs/files.py",
        '    path.unlink(missing_ok=True)\n    return open(path, "xb")',
        '    return open(path, "wb")',
        STORAGE,
    ),
    Mutant("a link under the lock's name is followed", f"{DATA}/storage.py", " | os.O_NOFOLLOW", "", STORAGE),
    Mutant(
        "two processes write to one folder",
        f"{DATA}/storage.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ENCODE + "::test_two_encodings_in_one_folder_are_kept_apart",
    ),
    Mutant(
        "a process that waited writes into the folder that another one finished",
        f"{DATA}/parquet.py",
        "if lock is not None and not _still_there(staging / LOCK, lock):",
        "if False:",
        ENCODE + "::test_an_encoding_that_waited_for_another_one_does_not_write_into_what_that_made",
    ),
    Mutant(
        "a foreign folder of the hidden name is deleted",
        f"{DATA}/parquet.py",
        '    return isinstance(note, dict) and note.get("format") == _PLAN_FORMAT',
        "    return True",
        ENCODE + "::test_a_foreign_folder_of_the_hidden_name_is_neither_used_nor_deleted",
    ),
    Mutant(
        "a hidden name that is a link is used",
        f"{DATA}/parquet.py",
        "if staging.is_symlink() or (",
        "if (",
        ENCODE + "::test_a_link_of_the_hidden_name_is_not_followed_even_into_an_empty_folder",
    ),
    # The door.
    Mutant(
        "null frames are read as whatever lies in memory",
        f"{DATA}/shards.py",
        'if name != "action" and table[name].null_count:',
        "if False:",
        CHECK + "::test_a_hostile_shard_is_refused_by_checking_and_by_reading",
    ),
    Mutant(
        "a row group may be of any size",
        f"{DATA}/shards.py",
        "0 < rows <= MAX_GROUP for",
        "0 < rows for",
        CHECK + "::test_a_hostile_shard_is_refused_by_checking_and_by_reading",
    ),
    Mutant(
        "a shard's number may be any",
        f"{DATA}/shards.py",
        "or not 0 <= given <= most:",
        "or not 0 <= given:",
        CHECK + "::test_a_hostile_shard_is_refused_by_checking_and_by_reading",
    ),
    Mutant(
        "columns may have any type",
        f"{DATA}/shards.py",
        "elif schema.field(field.name).type != field.type:",
        "elif False:",
        CHECK + "::test_a_hostile_shard_is_refused_by_checking_and_by_reading",
    ),
    Mutant(
        "a shard need not say which version it has",
        f"{DATA}/shards.py",
        '(version := metadata.get("version")) != VERSION',
        '(version := metadata.get("version", 1)) != VERSION',
        CHECK + "::test_a_hostile_shard_is_refused_by_checking_and_by_reading",
    ),
    Mutant(
        "an episode in two shards goes unnoticed",
        f"{DATA}/check.py",
        "self._seen.setdefault(number, self._name)) != self._name",
        "self._seen.setdefault(number, self._name)) is None",
        CHECK + "::test_every_damage_is_named_with_its_shard",
    ),
    Mutant(
        "an episode that goes on after its end goes unnoticed",
        f"{DATA}/check.py",
        "at(~begins & closed)",
        "at(~begins & begins)",
        CHECK + "::test_every_damage_is_named_with_its_shard",
    ),
    # Merging and splitting.
    Mutant(
        "merged episodes keep their numbers",
        f"{DATA}/curate.py",
        'pa.array(rows["episode"].to_numpy() + offset)',
        'pa.array(rows["episode"].to_numpy())',
        CURATE + "::test_merging_keeps_every_row_and_makes_episodes_unique",
    ),
    Mutant(
        "collecting can go on in a split folder",
        f"{DATA}/curate.py",
        'if k not in ("shard_rows", "rows")}',
        'if k not in ("rows",)}',
        CURATE + "::test_collection_never_goes_on_in_a_split_folder",
    ),
    # Latents.
    Mutant(
        "mean and log-variance change places",
        "latent_obs/collecting/encode_shard.py",
        'zip(("mean", "log_variance"), zip(',
        'zip(("log_variance", "mean"), zip(',
        ENCODE + "::test_latents_and_steps_come_back_as_episodes",
    ),
    Mutant(
        "scaled latents are not centred",
        f"{DATA}/latents.py",
        "((mean - self._shift) / self._scale)",
        "(mean / self._scale)",
        ENCODE + "::test_a_latents_folder_gives_what_a_wrapper_shows_the_agent",
    ),
    Mutant(
        "the variance is divided by the deviation once",
        f"{DATA}/latents.py",
        "log_variance - 2 * np.log(self._scale)",
        "log_variance - np.log(self._scale)",
        ENCODE + "::test_the_spread_of_a_posterior_is_scaled_as_its_mean",
    ),
    Mutant(
        "a deviation of zero is believed",
        f"{DATA}/latents.py",
        "if not (numbers and finite and min(numbers[1]) > 0):",
        "if not (numbers and finite):",
        ENCODE + "::test_hostile_latents_are_refused",
    ),
]
