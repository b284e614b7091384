"""Run logs and score tables -> tables, verdicts, figures. pandas, numpy, scipy, matplotlib; never torch."""
