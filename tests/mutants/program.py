"""Bugs in what the program and the package say and need."""

from __future__ import annotations

from tests.mutants import Mutant

EXTRAS = "latent_obs/extras.py"
COMMANDS = "latent_obs/commands.py"
TESTS = "tests/test_extras.py"
README = "tests/test_readme.py"

MUTANTS = [
    Mutant(
        "Acting imports pyarrow",
        "latent_obs/drift.py",
        "import numpy as np\n",
        "import numpy as np\nimport pyarrow\n",
        f"{TESTS}::test_acting_needs_the_base_dependencies_alone",
    ),
    Mutant(
        "The help imports the modules of all commands",
        COMMANDS,
        "from rich.table import Table\n",
        "from rich.table import Table\nimport matplotlib\n",
        f"{TESTS}::test_these_commands_need_the_base_dependencies_alone",
    ),
    Mutant(
        "Every missing package is said to come with the extra make",
        EXTRAS,
        "install_line(extra or EXTRAS[package])",
        'install_line("make")',
        f"{TESTS}::test_a_command_that_lacks_a_package_names_the_line_to_type",
    ),
    Mutant(
        "The extra that an adapter names is ignored",
        EXTRAS,
        "raise missing(job, package, extra) from error",
        "raise missing(job, package) from error",
        f"{TESTS}::test_an_import_that_lacks_a_package_names_the_line_to_type",
    ),
    Mutant(
        "A clone that was installed is installed from an index",
        EXTRAS,
        "    if record is None:\n",
        "    if True:\n",
        f"{TESTS}::test_the_line_installs_from_where_the_package_came",
    ),
    Mutant(
        "A space in the path of the clone stays encoded",
        EXTRAS,
        "url2pathname(urlparse(record['url']).path)",
        "urlparse(record['url']).path",
        f"{TESTS}::test_the_line_installs_from_where_the_package_came",
    ),
    Mutant(
        "Any missing module is blamed on an extra",
        EXTRAS,
        "        if extra is None and package not in EXTRAS:\n            raise\n",
        "",
        f"{TESTS}::test_a_fault_inside_an_installed_package_is_not_blamed_on_an_extra",
    ),
    Mutant(
        "The guide links to a heading that is not there",
        "docs/guide.md",
        "](results.md#how-many-latents)",
        "](results.md#how-many)",
        f"{README}::test_links_lead_somewhere[docs/guide.md]",
    ),
    Mutant(
        "The table of encoders has another figure than the program",
        "docs/encoders.md",
        "| 22 environments | 32 |",
        "| 22 environments | 64 |",
        f"{README}::test_the_table_of_encoders_is_what_the_program_lists",
    ),
]
