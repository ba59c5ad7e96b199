"""Small bugs of acting: encoders in integers, threads, the cache and the choice of a precision."""

from __future__ import annotations

from tests.mutants import Mutant

KERNEL = "tests/encoders/test_kernel.py"
RUNTIMES = "tests/encoders/test_runtimes.py"
THREADS = "tests/encoders/test_threads.py"
REMEMBERED = "tests/encoders/test_remembered.py"

QUANTISE_PY = "latent_obs/encoders/quantise.py"
RUNTIMES_PY = "latent_obs/encoders/runtimes.py"
ENCODER_PY = "latent_obs/encoders/encoder.py"
REMEMBERED_PY = "latent_obs/encoders/remembered.py"

MUTANTS = [
    Mutant(
        "the last bits of a sum decide how a weight halfway between two integers is rounded",
        "latent_obs/encoders/quantise.py",
        "np.rint(np.rint(weights * 2**20) / 2**20)",
        "np.rint(weights)",
        f"{KERNEL} -k last_bits_do_not",
    ),
    Mutant(
        "The parity gate is at 3%",
        RUNTIMES_PY,
        "PARITY = 0.02\n",
        "PARITY = 0.03\n",
        f"{RUNTIMES} -k fails_the_gate_is_not_taken",
    ),
    Mutant(
        "int8 weights are quantised per tensor instead of per channel",
        QUANTISE_PY,
        "np.maximum(np.abs(kernel).max(0) / 127,",
        "np.maximum(np.abs(kernel).max() / 127,",
        f"{KERNEL} -k every_machine",
    ),
    Mutant(
        "The head has no headroom for frames beyond the calibration's ranges",
        QUANTISE_PY,
        "1.3), 1.5\n",
        "1.3), 1.0\n",
        f"{KERNEL} -k beyond_the_range",
    ),
    Mutant(
        "Biases are not corrected",
        QUANTISE_PY,
        "bias = np.rint((exact[i] / scale - found).mean((0, 1, 2)))",
        "bias = np.rint(bias / scale)",
        f"{KERNEL} {RUNTIMES} -k every_machine",
    ),
    Mutant(
        "The mean of the latents is not corrected",
        QUANTISE_PY,
        "offset = (wanted - found * scale).mean(0)",
        "offset = head_bias",
        f"{KERNEL} -k corrected_layer_by_layer",
    ),
    Mutant(
        "The next layer does not undo the equalisation",
        QUANTISE_PY,
        "    following *= np.tile",
        "    following = following * np.tile",
        f"{RUNTIMES} -k unseen_frames",
    ),
    Mutant(
        "Of the headrooms the worst is taken",
        QUANTISE_PY,
        "best = min(errors",
        "best = max(errors",
        f"{KERNEL} -k not_fitted_to",
    ),
    Mutant(
        "The gate judges on the frames that weights were fitted to",
        QUANTISE_PY,
        "zip(halves, halves[::-1], exact[::-1], strict=True)",
        "zip(halves, halves, exact, strict=True)",
        f"{KERNEL} -k not_fitted_to",
    ),
    Mutant(
        "The gate measures by how much the few calibration frames vary",
        QUANTISE_PY,
        "deviations = np.asarray(std)",
        "deviations = reference.std(0)",
        f"{RUNTIMES} -k inactive_dimensions",
    ),
    Mutant(
        "A scene of a single frame decides the gate",
        QUANTISE_PY,
        "MANY = 8\n",
        "MANY = 800\n",
        f"{KERNEL} -k not_fitted_to",
    ),
    Mutant(
        "A weight that is rounded moves the others away from making up for it",
        QUANTISE_PY,
        "rest[i + 1 : block.stop] -= np.outer",
        "rest[i + 1 : block.stop] += np.outer",
        f"{KERNEL} -k make_up",
    ),
    Mutant(
        "Frames that a folder repeats count as unseen",
        QUANTISE_PY,
        "    frames = _different(frames)\n",
        "",
        f"{KERNEL} -k repeated_frames",
    ),
    Mutant(
        "A bias that does not fit int32 is cut off",
        QUANTISE_PY,
        ", np.abs(bias) / step / MOST_BIAS)",
        ", 0)",
        f"{KERNEL} -k dead_or_constant",
    ),
    Mutant(
        "Two encoders of one shape share what is remembered",
        QUANTISE_PY,
        "            digest.update(tensors[name].tobytes())",
        "            digest.update(name.encode())",
        f"{REMEMBERED} -k not_taken_for",
    ),
    Mutant(
        "The posterior in int8 is normalised",
        RUNTIMES_PY,
        'options, "").compile(precision, heads, normalize=False)',
        'options, "").compile(precision, heads, normalize=options.normalize)',
        "tests/encoders/test_encoder.py -k normalising_is_an_affine",
    ),
    Mutant(
        "The slowest precision is tried first",
        RUNTIMES_PY,
        "sorted(found, key=found.__getitem__)",
        "sorted(found, key=found.__getitem__, reverse=True)",
        f"{RUNTIMES} -k measured_and_remembers",
    ),
    Mutant(
        "What was measured is not remembered",
        RUNTIMES_PY,
        "            remembered.remember_speeds(case, found)\n",
        "",
        f"{RUNTIMES} -k measured_and_remembers",
    ),
    Mutant(
        "A cache that cannot be written is an error",
        REMEMBERED_PY,
        "        write_atomically(cache_folder() / name, content)\n    except (OSError, RuntimeError):",
        "        write_atomically(cache_folder() / name, content)\n    except RuntimeError:",
        f"{REMEMBERED} -k cannot_be_written",
    ),
    Mutant(
        "Threads do not wait for one another",
        RUNTIMES_PY,
        "        with self._lock:\n            return self._run(frames)",
        "        return self._run(frames)",
        f"{THREADS} -k eight_threads",
    ),
    Mutant(
        "A fork does not wait for threads that encode",
        RUNTIMES_PY,
        "        turns._lock.acquire()\n",
        "        turns._lock.acquire(blocking=False)\n",
        f"{THREADS} -k forked",
    ),
    Mutant(
        "A forked child keeps its parent's handles",
        ENCODER_PY,
        "        encoder._run = encoder._posterior = None\n",
        "        pass\n",
        "tests/encoders/test_encoder.py tests/encoders/test_threads.py -k fork",
    ),
    Mutant(
        "Importing OpenVINO sends telemetry",
        "latent_obs/encoders/graph.py",
        "if _absent:\n    sys.modules",
        "if False:\n    sys.modules",
        f"{REMEMBERED} -k phoned",
    ),
    Mutant(
        "The header of a calibration picture is not looked at",
        "latent_obs/encoders/folder.py",
        "        if (width, height) != (512, 512):",
        "        if (width, height) == (1, 1):",
        f"{RUNTIMES} -k refused_by_its_header",
    ),
    Mutant(
        "A long-sided calibration picture passes",
        "latent_obs/encoders/folder.py",
        "        if (width, height) != (512, 512):",
        "        if width != 512:",
        f"{RUNTIMES} -k refused_by_its_header",
    ),
    Mutant(
        "OpenVINO's int8 graph has no limit of the last layer",
        "latent_obs/encoders/graph.py",
        "x = ops.clamp(x, 0, HEAD_TOP) if i == last else fake(x, 0, TOP, 256)",
        "x = fake(x, 0, TOP, 256)",
        f"{RUNTIMES} -k same_integers",
    ),
]
