"""Bugs of report cards, of what they measure, and of recipes."""

from __future__ import annotations

from tests.mutants import Mutant

_EVALUATE = "latent_obs/evaluation/evaluate.py"
_MARKDOWN = "latent_obs/evaluation/markdown.py"
_MEASURES = "latent_obs/measures.py"
_PAGE = "latent_obs/evaluation/page.py"
_POSITIONS = "latent_obs/evaluation/positions.py"
_PROBE = "latent_obs/evaluation/probe.py"
_READERS = "latent_obs/evaluation/readers.py"
_RECIPE = "latent_obs/recipe.py"
_RECIPES = "latent_obs/recipes/__init__.py"
_REPORT = "latent_obs/evaluation/report.py"
_SELECTION = "latent_obs/evaluation/selection.py"

_TEST_EVALUATE = "tests/evaluation/test_evaluate.py"
_TEST_MEASURES = "tests/evaluation/test_measures.py"
_TEST_PAGE = "tests/evaluation/test_page.py"
_TEST_POSITIONS = "tests/evaluation/test_positions.py"
_TEST_PROBE = "tests/evaluation/test_probe.py"
_TEST_RECIPE = "tests/test_recipe.py"
_TEST_REPORT = "tests/evaluation/test_report.py"
_TEST_SELECTION = "tests/evaluation/test_selection.py"

MUTANTS = [
    Mutant(
        "the lines of a card forget that the environment was drawn",
        _MARKDOWN,
        """    if data.get("render"):
        made =""",
        """    if data.get("rendered"):
        made =""",
        f"{_TEST_REPORT} -k lines_of_a_card",
    ),
    Mutant(
        "the lines of a card forget which entry was the image",
        _MARKDOWN,
        '"key": data.get("key")}',
        '"key": None}',
        f"{_TEST_REPORT} -k lines_of_a_card",
    ),
    Mutant(
        "PCA is fitted on the frames that it is measured on",
        _EVALUATE,
        "fit_baselines(selection.others, encoder.vae,",
        "fit_baselines(selection.frames, encoder.vae,",
        f"{_TEST_EVALUATE} -k baselines",
    ),
    Mutant(
        "what changes is measured on the episodes that the baselines were fitted on",
        _SELECTION,
        "for episode in measured[:STRETCHES]]",
        "for episode in fitted[:STRETCHES]]",
        _TEST_SELECTION,
    ),
    Mutant(
        "positions are fitted on the measured frames",
        _EVALUATE,
        "position_r2(selection.others, frames, encodings)",
        "position_r2(frames, frames, encodings)",
        f"{_TEST_EVALUATE} -k baselines",
    ),
    Mutant(
        "the readers of positions are fitted on the features of the measured frames",
        _POSITIONS,
        "whiten(encode(fitted), encode(measured))",
        "reversed(whiten(encode(measured), encode(measured)[: len(fitted)]))",
        _TEST_POSITIONS,
    ),
    Mutant(
        "the positions of the measured frames are used for fitting",
        _POSITIONS,
        "places = known[fits[:, color], color]",
        "places = truth[shown[:, color], color][: fits[:, color].sum()]",
        _TEST_POSITIONS,
    ),
    Mutant(
        "an object counts as small whatever its extent",
        _POSITIONS,
        "(sums[0] > 0) & (extent <= MAX_EXTENT**2)",
        "sums[0] > 0",
        _TEST_POSITIONS,
    ),
    Mutant(
        "the frames measured include those to fit on",
        _SELECTION,
        "for episodes in (measured, fitted)",
        "for episodes in ([*measured, *fitted], fitted)",
        _TEST_SELECTION,
    ),
    Mutant(
        "a frame carries the number of another episode",
        _SELECTION,
        "folder.index.numbers(rows), tuple",
        "folder.index.numbers(rows[::-1]), tuple",
        _TEST_SELECTION,
    ),
    Mutant(
        "the first frame of an episode counts as the last one's",
        "latent_obs/data/index.py",
        'self._numbers[np.searchsorted(self._starts, rows, "right") - 1]',
        'self._numbers[np.searchsorted(self._starts, rows, "left") - 1]',
        _TEST_SELECTION,
    ),
    Mutant(
        "a stretch is made of random frames of its episode",
        _SELECTION,
        "_draw(folder, [episode], STRETCH)",
        "_draw(folder, [episode], STRETCH // 10, rng)",
        _TEST_SELECTION,
    ),
    Mutant(
        "frames that never change get a report card",
        _SELECTION,
        "if (part == part[0]).all():",
        "if False:",
        _TEST_SELECTION,
    ),
    Mutant(
        "episodes that training saw count as held out",
        _SELECTION,
        'run["config"]["seed"])[1]',
        'run["config"]["seed"])[0]',
        f"{_TEST_EVALUATE} -k held_out",
    ),
    Mutant(
        "half of the training folder is measured",
        _SELECTION,
        "if held_out is None:",
        "if True:",
        f"{_TEST_EVALUATE} -k held_out",
    ),
    Mutant(
        "the probe reads RAM one step after its frame",
        _PROBE,
        "frames[i], ram[i], episodes[i] = preprocess(obs, spec), ale.getRAM(), episode\n"
        "            if watch:\n"
        "                watch(obs)\n"
        "            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())\n",
        "frames[i], episodes[i] = preprocess(obs, spec), episode\n"
        "            if watch:\n"
        "                watch(obs)\n"
        "            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())\n"
        "            ram[i] = ale.getRAM()\n",
        _TEST_PROBE,
    ),
    Mutant(
        "the majority class is that of the test labels",
        _PROBE,
        "for column in labels[train].T]",
        "for column in labels[test].T]",
        _TEST_PROBE,
    ),
    Mutant(
        "test frames that equal a frame fitted on are kept",
        _PROBE,
        "self.frames[i].tobytes() not in seen",
        "True",
        _TEST_PROBE,
    ),
    Mutant(
        "readers whiten with the mean of training and test frames together",
        _READERS,
        "mean = train.mean(0, dtype=np.float64)",
        "mean = np.concatenate([train, *others]).mean(0, dtype=np.float64)",
        _TEST_PROBE,
    ),
    Mutant(
        "entropy is in bits",
        _READERS,
        "-(share * np.log(share)).sum()",
        "-(share * np.log2(share)).sum()",
        _TEST_PROBE,
    ),
    Mutant(
        "F1 is averaged over classes without weights",
        _READERS,
        "(f1 * there).sum() / len(truth)",
        "f1[there > 0].mean()",
        _TEST_PROBE,
    ),
    Mutant(
        "drift is told in deviations of this folder",
        _MEASURES,
        "shift = (mean - mean0) / np.maximum(std0, 1e-6)",
        "shift = (mean - mean0) / np.maximum(std, 1e-6)",
        _TEST_MEASURES,
    ),
    Mutant(
        "colours twice as common as rare ones count as rare",
        _MEASURES,
        "(foreground.rarity[color_bins(frames[rows])] == 1)",
        "(foreground.rarity[color_bins(frames[rows])] >= 0.5)",
        _TEST_MEASURES,
    ),
    Mutant(
        "a mean squared error below one level^2 counts as one",
        _MEASURES,
        "MIN_MSE = 1 / 12",
        "MIN_MSE = 1",
        _TEST_MEASURES,
    ),
    Mutant(
        "colours of bytes wrap around at 256",
        _MEASURES,
        "if levels.itemsize == 1:",
        "if False:",
        _TEST_MEASURES,
    ),
    Mutant(
        "an inactive dimension has a say in the drift",
        _MEASURES,
        "active = std0**2 > ACTIVE_VARIANCE",
        "active = std0**2 > 0",
        _TEST_MEASURES,
    ),
    Mutant(
        "a flash hides a lost ball",
        _MEASURES,
        "return share <= 0.5 if len(share)",
        "return share <= 1 if len(share)",
        _TEST_MEASURES,
    ),
    Mutant(
        "each episode's R2 divides by the energy of all",
        _MEASURES,
        "return [_r2(*pair) for pair in zip(residual, energy, strict=True) if pair[1]]",
        "return [_r2(a, energy.sum()) for a, b in zip(residual, energy, strict=True) if b]",
        _TEST_MEASURES,
    ),
    Mutant(
        "what changes is compared with the next frame",
        _MEASURES,
        "pairs = [(stretch[:-1], stretch[1:]) for stretch in stretches]",
        "pairs = [(stretch[1:], stretch[:-1]) for stretch in stretches]",
        _TEST_MEASURES,
    ),
    Mutant(
        "the ELBO is that of the posterior's mean, without sampling",
        "latent_obs/training/held_out.py",
        "terms(vae, part, torch.randn(shape, generator=generator, device=part.device))",
        "terms(vae, part)",
        f"{_TEST_EVALUATE} -k elbo",
    ),
    Mutant(
        "the columns of PCA and of the untrained network are swapped",
        _REPORT,
        'CODES = {"encoder": "encoder", "pca": "PCA", "random": "untrained"}',
        'CODES = {"encoder": "encoder", "random": "PCA", "pca": "untrained"}',
        _TEST_REPORT,
    ),
    Mutant(
        "the untrained network's row shows PCA's figures",
        _REPORT,
        "self.baselines[code]",
        'self.baselines["pca"]',
        _TEST_REPORT,
    ),
    Mutant(
        "the range over episodes is upside down",
        _REPORT,
        "min(values), max(values)",
        "max(values), min(values)",
        _TEST_REPORT,
    ),
    Mutant(
        "PCA that is as good does not count as better",
        _REPORT,
        "own <= best and own != 1",
        "own < best",
        _TEST_REPORT,
    ),
    Mutant(
        "cards from before rare colours no longer load",
        _REPORT,
        "    rare_r2: float | None = None",
        "    rare_r2: float | None",
        _TEST_REPORT,
    ),
    Mutant(
        "JSON forgets the spread over episodes",
        _REPORT,
        '"by_episode": dict(self.by_episode),',
        '"by_episode": {},',
        _TEST_REPORT,
    ),
    Mutant(
        "the worst reconstructions are the best",
        _PAGE,
        "np.argsort(-residuals.moving)",
        "np.argsort(residuals.moving)",
        _TEST_PAGE,
    ),
    Mutant(
        "the page always says that the frames were held out",
        _PAGE,
        "if card.data.held_out else",
        "if True else",
        _TEST_PAGE,
    ),
    Mutant(
        "the headline shows the PSNR",
        _PAGE,
        "{headline.shown(card)}",
        "{card.psnr:.3f}",
        _TEST_PAGE,
    ),
    Mutant(
        "the page parses what a card says as HTML",
        "latent_obs/evaluation/markup.py",
        "html.escape(str(value), quote=True)",
        "str(value)",
        _TEST_PAGE,
    ),
    Mutant(
        "the Markdown shows the untrained network's figures in brackets",
        "latent_obs/evaluation/markdown.py",
        "card.baselines['pca']",
        "card.baselines['random']",
        _TEST_REPORT,
    ),
    Mutant(
        "the command line parses brackets in a card as markup",
        "latent_obs/commands.py",
        "_say(text.strip())",
        '__import__("rich.console").console.Console().print(text.strip())',
        f"{_TEST_RECIPE} -k brackets",
    ),
    Mutant(
        "a second collection of an environment goes into the folder of the first",
        _RECIPE,
        'f"-{seen[env_id]}" if seen[env_id] > 1 else ""',
        '""',
        f"{_TEST_RECIPE} -k two_collections",
    ),
    Mutant(
        "a mixture stays when its parts have grown",
        _RECIPE,
        "if merged.exists() and FramesFolder(merged).collections != wanted:",
        "if False:",
        f"{_TEST_RECIPE} -k mixture",
    ),
    Mutant(
        "a recipe's figures are the mean over environments that it was trained on",
        _RECIPE,
        "for name in reports.unseen or reports.reports]",
        "for name in reports.reports]",
        f"{_TEST_RECIPE} -k metrics_are_means",
    ),
    Mutant(
        "measuring again loses what was read of the RAM",
        _RECIPE,
        "reports = replace(reports, reports=_with_probes(reports, before, encoder))",
        "pass",
        f"{_TEST_RECIPE} -k measuring",
    ),
    Mutant(
        "an old report is taken for that of more frames",
        _RECIPE,
        "same = known.data.collection == FramesFolder(frames).identity",
        "same = True",
        f"{_TEST_RECIPE} -k reports_of_other_frames",
    ),
    Mutant(
        "unknown fields of a recipe are ignored",
        _RECIPES,
        "if unknown := sorted(set(value) - set(known)):",
        "value = {k: v for k, v in value.items() if k in known}\n    if unknown := []:",
        f"{_TEST_RECIPE} -k says_why",
    ),
    Mutant(
        "the last of two values of a field counts",
        _RECIPES,
        "json.loads(text, object_pairs_hook=_once)",
        "json.loads(text)",
        f"{_TEST_RECIPE} -k twice",
    ),
    Mutant(
        "true is a number of frames",
        _RECIPES,
        "lambda value: type(value) is int",
        "lambda value: isinstance(value, int)",
        f"{_TEST_RECIPE} -k says_why",
    ),
]
