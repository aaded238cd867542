"""What the page says around its figures and tables, for readers who do not know the method."""

DATA = (
    "Cold start here means listeners that nothing was trained on. Users are ranked by a salted hash of "
    "their id and cut at exact counts, so no user, session or label is in two parts. Training users give "
    "every parameter and statistic; validation users decide when training stops, what the baselines' "
    "settings are and how predictions are recalibrated; test users give the figures. Tracks are shared "
    "between the parts. When a session is predicted, what the same user did and reported before it is an "
    "input; its own final report never is. Counts below are of the first split. A column that begins with "
    "missing is the share without that label; missing is left missing, never filled in, and reports are "
    "seldom missing at random."
)
MODEL = (
    "Every policy below was trained and judged inside a learned model of listeners. It was fitted to "
    "training users and is scored here on users it has never seen (strict cold start), beside what a "
    "careful statistician would use instead. Much of a high R2 is the person and the mood before the "
    "session; the gap to the track-blind model is what knowing the tracks adds, and only that part can "
    "choose music."
)
FIT = (
    "R2 is the share of variance explained about the mean of the training users, so 0 means no better than "
    "that mean and less than 0 worse. AUROC is the chance that a liked track scores above a disliked one. "
    "Lines are 95 % intervals that draw users, not sessions."
)
REST = (
    "MAE is the mean absolute error in scale points. CRPS scores the whole predictive distribution (lower "
    "is better). Coverage is the share of observations inside the central predictive interval (mass on an "
    "end counts by its share inside): it should equal the interval's level. ECE is the mean gap between "
    "predicted and observed shares over ten bins of equal count."
)
RELIABILITY = (
    "Where a probability means what it says, points lie on the dashed diagonal. Each point is a tenth of "
    "the held-out predictions, with its 95 % interval by user. Triangles are the same predictions "
    "recalibrated on validation users, shown only where that helped those users."
)
PIT = (
    "The level at which each observation fell in its predicted distribution (randomised PIT). Calibrated "
    "distributions are flat at the dashed line; a heap in the middle says too wide, at the ends too narrow,"
    " to one side biased. Circles: the world model; triangles: recalibrated."
)
HORIZON = (
    "Sessions of held-out users replayed with sampled feedback. Circles: the log's own tracks, beside what "
    "the log says; that error holds the noise of reports, too, so it does not fall to 0. Diamonds: random "
    "tracks, beside the platform's truth."
)
NO_HORIZON = (
    " How many tracks ahead it may be followed was not measured for this page: evaluate.studies=[rollouts] "
    "adds it."
)
EFFECTS = (
    "What choosing can change: the outcome of other tracks for the same listener, state and mode. The effect "
    "slope is that of the true on the predicted effect (platform only); 1 says that predicted effects come "
    "true, less than 1 that too much is promised. The uplift slope asks the same of logs, where the truth is "
    "unknown. In small worlds with a known truth its 95 % interval should hold the true slope in 95 of 100 "
    "worlds, and the same regression among all other listeners as often."
)
LEARNING = (
    "The same model trained on the logs of fewer and of more listeners. The dashed ceilings: predictions "
    "from the listener's true state, and the learning curve read at ten times the users, an estimate of "
    "what histories allow at all."
)
TRUST = (
    "Disagreement is the standard deviation between the members' expectations: what more listeners would "
    "remove. The trusted horizon is the last number of tracks up to which the 90 % upper bound of the error"
    " stays under the tolerance: against the log by bias and by what rolling out adds, against the "
    "platform's truth (lists of random tracks) by the whole error. Told apart is the AUROC of boosted trees"
    " between logged and simulated sessions of the same users; .5 says that they cannot be."
)
POLICIES = (
    "Copycat imitates the service that made the logs; every gain is a difference to it for the same "
    "sessions of held-out users. Scales run from 0 to 1. Valence, engagement and rating count upwards; "
    "arousal counts upwards in energize, downwards in calm and sleep, and in modes of the service's own as "
    "the utility says; modes without a direction are left out. Modes weigh as in the logs."
)
GAIN = (
    "Three ways of knowing a gain. Realised: the expected signals under the platform's true dynamics "
    "(synthetic platform only). Judge: a world model trained on users that labelled no training pair. "
    "Labeller: the world model that made the training pairs, whose own figure is expected to flatter the "
    "policy that it trained."
)
GROUPS = "The same gain for each cohort and mode. Small groups have wide intervals: read those, not the dots."
PLANE = (
    "What a gain costs. KL measures how far a policy moved from Copycat; the effective number of tracks is "
    "exp(entropy) of everything it recommended. A good policy gains upwards without moving far right in the"
    " first panel or far left in the second."
)
EXAMPLES = (
    "One session per mode from its start to its end, with the same listener and the same luck under both "
    "policies: not the best, but the one whose gain in valence is the median of its mode. Points are the "
    "report expected if the session ended after that track; the cross is the report before the session. "
    "Circles: Copycat; diamonds: DPO; the large marks are the last tracks. One session each (n = 1), so "
    "there are no intervals: these are to be looked at, not counted."
)
OFF_POLICY = (
    "Off-policy estimates need no model of the listener: they weigh logged sessions by how much likelier "
    "the policy would have made their tracks. Where few sessions carry the weight, nothing is told. Reports"
    " that were not given are not made up: the figures are of the reports that would be given. With "
    "propensities estimated by Copycat they speak of production tilted as the policy tilts Copycat, and "
    "inherit what Copycat gets wrong."
)
HARM = (
    "A mean can rise while some listeners fall. Harm is the share of sessions in which the listener would "
    "expect to feel worse by more than .02 than under Copycat: the same listener, state and mode, averaged "
    "over paired simulations; a session that was left counts at its last state. Policies "
    "meet the same luck as Copycat does; Copycat against itself has other luck, so it bounds from above "
    "what the simulations' noise would count as harm. For clinical listeners the upper end of the interval "
    "matters more than the mean."
)
HARM_BOUND = (
    "The upper end counts listeners, not sessions: where nobody is harmed among 3 listeners it is .708, "
    "among 30 it is .116, among 100 it is .036."
)
LASTING = (
    "On the synthetic platform listeners can be followed through twenty sessions in a row under one policy. "
    "What is given now and taken back later shows here and in no simulation of one session; where there is "
    "no platform, the gate asks the log (later reports on earlier sessions)."
)
GATE = (
    "Every threshold must hold before a policy may be exported; configs/gate.yaml gives the reasons. The "
    "figures are the judge's or of held-out reports. What was realised never enters: where a policy is to "
    "be used, nobody knows it."
)
JUDGE = (
    "The judge is another model than the one under \u201cCan the world model be believed?\u201d: it learned "
    "from the half of the training users that labelled no pair, not from all of them. So its slopes and "
    "coverage differ from those there, and the gate takes its figures from here."
)
BREAKING = (
    "How wrong the judge would have to be until the gain is gone: shrinking every response (1 takes all of "
    "it), lag in affect, tracks that sound alike, a share of tracks heard as their opposites, noise in the "
    "judge's heads, and a hidden common cause of tracks and affect, as a factor on the odds of a track (Tan"
    " 2006) at which the gain's lower bound is gone. Not broken: not within what was tried."
)
WORST = (
    "A bounded search among test users' real histories, with feedback exchanged for feedback that somebody "
    "gave, for those on which a policy does worst against Copycat in the judge; re-simulated under new "
    "luck."
)
WORLDS = (
    "The gate itself, tried in many small worlds: in traps nothing that passes is right, in worlds with an "
    "effect a pass is."
)
DIAGONAL = (
    "On the synthetic platform the truth is known, so the judge's and the labeller's predictions can be "
    "checked. On the dashed diagonal a prediction came true; below it (for gains above 0) the gain was "
    "promised but not delivered. Names stand at the judge's points."
)
FRONT = (
    "What one signal costs in the other. Each point is a DPO policy of its own, within the same budget of "
    "divergence; the number beside it is valence's share of the weight that valence and arousal have "
    "together. Points below and to the left of another are not worth having; where intervals overlap, "
    "nothing is told."
)
