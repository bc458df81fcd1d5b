"""`venture`, the operator's command line: what the runbook asks for, as commands that check, ask and audit."""
