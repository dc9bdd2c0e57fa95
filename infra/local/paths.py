"""Where the parts of the repository lie that the local stack reads."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FUNCTIONS = REPOSITORY / "functions"
NODE_MODULES = REPOSITORY / "infra" / "local" / "node_modules"
TOKENIZERS = FUNCTIONS / "gateway" / "tokenizers"
LINTERS = REPOSITORY / "infra" / "local" / "linters"
SCHEMA = REPOSITORY / "sql" / "schema.sql"
MIGRATIONS = REPOSITORY / "supabase" / "migrations"
SEED = REPOSITORY / "supabase" / "seed.sql"
CATALOGUE = REPOSITORY / "sql" / "catalogue" / "models.csv"
ROLES = REPOSITORY / "infra" / "local" / "roles.sql"
