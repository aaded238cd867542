"""What a careful team would try before anyone hears a track: every file is one kind of trouble.

`harm` counts who would be worse off, `dynamics` perturbs the judge, `confounding` asks how strong a hidden
cause must be, `counterfactual` makes up histories and `properties` says what must hold on them, `adversary`
searches for the worst of the real ones.
"""
