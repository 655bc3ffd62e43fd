"""Short stagecoach stories from a seeded grammar: the text that the demo model is trained on.

`stories(seed, count)` yields one-line stories. A story draws its cast, its road, its weather and a plot once, so that
names, pronouns, things and places stay the same from the first sentence to the last. Sentences are written as templates:
`[a|b|c]` is one choice of several and nests, `{h}` is a value of the story at hand:

    h  the hero          he him his himself   the hero's pronouns       job     the hero's trade
    g  a fellow traveller ghe ghim ghis       the traveller's pronouns  gjob    the traveller's trade
    d  the driver        dhe dhim dhis        the driver's pronouns
    k  the innkeeper     khe khim khis        the innkeeper's pronouns
    a, b, v  where the coach comes from, where it goes, a village between     inn  the inn on the way
    o, ob    a thing in full ("small brass clock") and in short ("clock")     horse  the lead horse
    n, m     two numbers, in words            kin  somebody waiting at the end of the road (the hero's)
"""
import random
import re

FEMALE = ("Ada Agnes Alice Anna Beatrix Clara Chloé Dora Edith Élise Ella Flora Grace Greta Hannah Hester Ida Iris Jane Judith "
          "Kate Lena Lydia Mabel Margot Martha Maud Mina Nell Nora Olive Pearl Renée Rosa Ruth Sarah Thea Vera Willa Zoé").split()
MALE = ("Abel Adam Albert André Arthur Barnaby Basil Caleb Conrad Daniel Edmund Edwin Elias Felix Francis Gilbert Hector Henry "
        "Hugo Isaac Jacob Jasper Jonas José Julian Laurence Leo Luke Martin Miles Noël Oliver Oscar Philip Ralph René Silas "
        "Simon Theo Victor Walter").split()
SURNAMES = ("Archer Barlow Birch Carver Cobb Dale Drummond Fell Finch Garland Hale Harrow Hobbs Keene Lark Moss Nettle Oakes "
            "Pardoe Pike Quill Rook Sedge Tanner Thorne Vane Wick Yarrow").split()
TOWNS = ("Ashwick Bellmere Bramford Caldwater Coldbridge Dunmere Eastfold Elmstead Fairlow Foxcombe Greyfell Harrowgate Highmoor "
         "Ivybridge Kestrel Larkhill Longmarsh Millbrook Netherby Oldmill Oxbarrow Pennworth Quarry Redcliff Ryefield Saltby "
         "Starling Stonecross Thornwick Valpré Westering Windle Withy Yewdale Saint-Rémy Port-Élise").split()
JOBS = ("clockmaker schoolteacher baker doctor fiddler surveyor tailor bookseller botanist soldier painter midwife printer "
        "mapmaker student sailor beekeeper weaver cook glassblower lawyer potter carpenter gardener actor shepherd "
        "locksmith miller poet bell-ringer").split()
HORSES = "Juniper Captain Bramble Pepper Duchess Thunder Clover Admiral Biscuit Comet Hazel Sultan Tinker Violet".split()
INN_A = "Silver Golden Red White Blue Lame Sleeping Merry Laughing Old Lucky Crooked Hungry Dancing Patient Speckled".split()
INN_B = "Kettle Goose Lion Hare Bell Wheel Lantern Fox Otter Plough Anchor Heron Pear Boot Owl Badger Crown Trout".split()
KIN = "sister brother mother father aunt uncle cousin grandmother grandfather godmother".split()
NUMBERS = "three four five six seven eight nine ten eleven twelve fourteen twenty thirty".split()
SIZES = "small heavy old little fine plain curious narrow".split()
STUFFS = "brass silver wooden tin copper ivory leather iron painted".split()
THINGS = "clock box whistle bell compass lantern key flute medal locket mirror tea-pot music-box trunk".split()

WEATHER = {
    "rain": (["It had rained [since dawn|for {n} days|all night], and the road to {b} was [brown with mud|soft as butter|full of puddles].",
              "Rain [drummed|pattered|rattled] on the roof of the coach as it left {a}.",
              "A [cold|thin|steady|warm] rain was falling on {a} when the [horses|passengers|lamps] were made ready."],
             ["The rain [came down harder|ran down the windows|found every hole in the roof], and [nobody spoke for a while|the wheels threw up mud on both sides].",
              "[Water stood in every rut|The ditches were full and noisy|The fields shone like glass], and the horses went [slowly|at a walk|with their ears flat].",
              "Outside, the rain [went on and on|blew sideways|drummed on the leather hood]; inside, it smelled of wet [wool|dog|straw|hats]."],
             ["By then the rain had stopped, and the whole street [smelled of lilac|shone in the sun|dripped and glittered].",
              "The clouds broke at last, and a rainbow stood over {b}.",
              "It was still raining, but nobody minded any more."]),
    "snow": (["Snow had fallen [in the night|since noon|on the hills], and {a} was [white and silent|quiet as a church|hardly to be recognised].",
              "It was the [coldest|whitest|shortest] day of the year, and the coach to {b} had [straw|hot bricks|old blankets] on the floor.",
              "The first snow of the winter was falling when the coach left {a}."],
             ["The snow [lay deep|had hidden the milestones|squeaked under the wheels], and the breath of the horses [rose like smoke|hung in the air].",
              "[Flakes as big as feathers|Small dry flakes|A few last flakes] drifted past the window, and {h} [watched them|counted them|caught one] without a word.",
              "It was so cold that the [ink|water|cheese|milk] froze in the [bottle|can|basket|bag]."],
             ["Snow was still falling on the roofs of {b}, but [every window was lit|the stoves were hot|there was soup for everyone].",
              "That night the stars came out over the snow, [hard and bright|clear as bells|more than anyone could count].",
              "In the morning the snow was blue, and the road was open again."]),
    "fog": (["Fog lay on the road to {b}, so thick that {d} [could not see the lead horse|drove by ear|lit the lamps at noon].",
             "The morning was [grey|white|blind] with fog, and {a} [vanished|was gone] behind the coach [in a moment|before the first bend].",
             "Nobody in {a} had ever seen such a fog."],
            ["Now and then a [tree|gate|cow|signpost|chimney] came out of the fog and [went back into it|looked at them|was gone again].",
             "The fog [swallowed every sound|crept in at the windows|tasted of iron], and even {horse} [did not like it|walked with care|kept very quiet].",
             "{d} blew the horn every [hundred yards|few minutes|mile], and once [a horn answered|an echo answered|a dog answered]."],
            ["Then the fog lifted like a curtain, and there [was {b}, roof after roof|lay {b} in the sun|were the lights of {b}].",
             "The fog stayed in the valley, but [up here the evening was clear|over the roofs the moon was shining].",
             "People in {b} still speak of the day of the great fog."]),
    "sun": (["It was a [bright|clear|golden|warm] morning in [April|May|June|September], and the road from {a} to {b} was [dry|white with dust|full of larks].",
             "The sun was [just up|already hot|shining on the wet roofs] when the coach left {a}.",
             "All of {a} was [in blossom|out of doors|smelling of bread] on the morning when the coach set off for {b}."],
            ["[Larks sang over the fields|Bees hummed in the hedges|Children waved from a gate], and the dust [rose behind the wheels|hung golden in the air].",
             "They passed [orchards|mills|ponds|hayfields] and [flocks of sheep|empty barns|white cottages], and {h} [put {his} hat over {his} eyes|let the window down|began to hum].",
             "By noon it was so hot that {d} [stopped under a chestnut tree|let the horses drink twice|took off {dhis} coat and then {dhis} hat]."],
            ["The sun went down behind {b}, [red as a copper pan|slowly and without a cloud|and the swallows came home].",
             "It was a warm evening, and [every door in {b} stood open|the whole street sat outside|somebody was playing a fiddle].",
             "The last light lay on the road, and the dust had settled."]),
    "wind": (["A [strong|sharp|restless|noisy] wind blew from the [north|west|sea|hills] on the day the coach left {a}.",
              "All night the wind had [shaken the shutters|sung in the chimneys|pulled at the signs] of {a}, and in the morning it [was no better|was stronger still|took {n} hats].",
              "The wind was so strong that the [pigeons of {a} walked|coach leaned like a ship|driver tied on {dhis} hat]."],
             ["The wind [rocked the coach|whistled in the harness|blew straw across the road], and {horse} [put {hhis} head down|pulled like two horses|did not care at all].",
              "[A branch|A hat|A sheet from some washing line|Somebody's umbrella] flew past the window, and {g} [laughed|ducked|said that it was a sign].",
              "On the open moor the wind [never rested|had nothing to stop it|sounded almost like voices]."],
             ["Towards evening the wind dropped, and it was suddenly so quiet that they could hear [the river|the bells of {b}|their own hearts].",
              "The wind had blown the sky clean, and the stars over {b} [were very near|looked newly washed].",
              "The wind turned to the south in the night, and it smelled of spring."]),
}

INTRO = [
    "{h} [was|worked as|had long been] a {job} in {a}, and {he} [had never been as far as {b}|knew every stone of the street|did not care for travelling].",
    "On the seat by the [left|right] window sat {h}, a {job} from {a}, who [held|guarded|hugged] a {o} on {his} knees.",
    "There [lived|was] in {a} a [young|clever|patient|cheerful|stubborn|shy] {job} whose name was {h}.",
    "{h} paid {n} [coins|shillings] for a seat to {b} and [sat down|climbed in|found a place] next to [a basket of hens|an enormous cheese|a sleeping priest|two small boys|a sack of onions].",
    "When {h} [got|received|opened] the letter from {his} {kin} in {b}, {he} [packed one bag|closed the shop|kissed the cat] and [took|bought a seat on|ran for] the next coach.",
    "“Is this the coach to {b}?” asked {h}, [a little out of breath|with a bag in each hand|who was a {job} and hated to be late]. “[It is|It was when I got up|So it says on the door],” said {d}.",
]
CAST = [
    "The only other passenger was {g}, a {gjob}, who [had a cold|was reading|ate nuts|slept with open eyes|asked a great many questions].",
    "Opposite sat a {gjob} called {g}, and beside {ghim} [stood a birdcage|lay a folded map|stood {n} boxes tied with string|slept a very old dog].",
    "At {v} a {gjob} got in; {ghe} [bowed to everybody|shook the water from {ghis} hat|took the best seat] and said that {ghis} name was {g}.",
    "{g}, a {gjob} on the way to {b}, [shared {ghis} bread|offered everyone an apple|talked about the price of hay] before they had passed the first milestone.",
    "“{g},” said the {gjob} in the corner, [holding out a hand|lifting {ghis} hat|without looking up], “and I am going to {b}, [if the bridge holds|God willing|like it or not].”",
]
DRIVER = [
    "{d} [had driven|had been driving] the road for {m} years and [knew every bend of it|had never once been late|talked to the horses as if they were people].",
    "On the box sat {d}, who [wore {m} scarves|sang when the road was straight|feared nothing but geese] and [had a whip that {dhe} never used|called every horse by name].",
    "“[All aboard|Doors shut, feet in|Hold on to your hats]!” [cried|called|shouted] {d}, and {horse} [set off before the last word|shook {hhis} mane|pulled].",
]
TALK = [
    "“Do you [often|always] travel this way?” asked {g}. “[Never|Only when I must|Every spring],” said {h}, “[and I begin to see why|my {kin} lives in {b}|it does my hat no good].”",
    "“[They say|I have heard|My {kin} writes] that in {b} [the bread is blue|nobody locks a door|the clocks are always {n} minutes slow|even the cats are polite],” said {h}. “[Then they say wrong|Quite true|I would not be surprised],” said {g}.",
    "{g} asked what was in the bag. “[A {o}|Nothing but a {o}|You will laugh: a {o}],” said {h}, and {g} did [not laugh|laugh a little|indeed laugh].",
    "“How far is it to {b}?” asked {h}. “[{N} miles|{N} miles and a hill|{N} miles, or {m} if it is dark],” said {d}, “[but {horse} knows a shorter way|and the hill is the longest of them|and I have never counted them twice].”",
    "“[May I tell you something|Can you keep a secret]?” said {g} after a while. {h} [nodded|put down {his} book|looked up]. “I have [never been on a coach before|not slept for {n} nights|written a whole book, and nobody has read it|lost my return ticket],” [{ghe} whispered|said {g}|{ghe} said].",
    "“A coach,” {d} liked to say, “is [a small town on wheels|only a chair that has somewhere to go|as good as its worst wheel|a letter with people in it].”",
    "“[Tell us a story|Sing something],” said {g}. So {h} [told them about|sang about] [a miller who married the moon|a goose that learned to count|a king who was afraid of soup|a ship with no sails], and [nobody noticed the hill|the miles went by|even {d} leaned back to listen].",
]
ROAD = [
    "They changed horses at {v}, where [a boy sold them hot chestnuts|the pump was broken|a hen got in and had to be put out again|{g} bought {n} pears].",
    "The road [climbed through a pine wood|ran beside the river|went over the moor as straight as a ruler|crossed {n} bridges], and [nobody met them but a fox|{h} counted the milestones|the shadows grew long].",
    "In {v} the [mayor|priest|blacksmith|postmistress] came out to [wave|ask for news|look at the wheels|complain about the noise], as always.",
    "{horse} [stopped to look at a scarecrow|sneezed twice|pricked up {hhis} ears|stole an apple from a cart], and {d} [sighed|laughed|pretended not to see].",
    "Once they had to wait while [a hundred sheep|{n} geese|a wedding|a family of ducks|an old man with a wheelbarrow] crossed the road.",
    "{h} [ate a sandwich|wrote in a small book|tried to sleep|took off one boot], and {g} [looked out of the window|did the same|peeled an orange|hummed].",
    "At the [toll-gate|crossroads|ferry] {d} paid with [a coin|a joke|two eggs|a newspaper], and they were let through.",
]
INN = [
    "They stopped for the night at {inn}, where {k} the innkeeper [gave them soup|had kept the fire going|showed them to {n} cold rooms|asked for the news from {a}].",
    "{inn} was [full to the roof|small and warm|the only house for miles], and {k}, who kept it, [put {h} in the attic|found them a table by the fire|counted the spoons].",
    "At {inn} there was [mutton pie|onion soup|fried trout|plum cake] for supper, and {k} [would not hear of payment|sat down with them|told them of the great flood].",
    "“[Come in, come in|Wipe your boots|You are late],” said {k} at the door of {inn}, “the [soup is hot|pie is nearly gone|beds are aired], and [you look like ghosts|the road is no place for travellers tonight|there is room for all of you].”",
]
END = [
    "[So|And so|That is how] {h} came to {b}, and {his} {kin} [cried and laughed at once|had made dumplings|was waiting under the clock].",
    "{h} [never forgot that road|kept the ticket all {his} life|told the story every winter], and each time the [hill was higher|horses were faster|night was darker].",
    "“[Same time next year|The same seats in spring]?” said {g}. “[Certainly|With pleasure|If {horse} is willing],” said {h}, and they shook hands.",
    "{d} [turned the coach round|tipped {dhis} hat|blew the horn once more], and {horse}, who [knew the way|wanted supper|had understood everything], [trotted home|set off for {a}|did not look back].",
    "And if you ever come to {b}, [ask for {h}|go and look at the {ob}|say that {d} sent you]: [you will get a cup of coffee|they will tell you the rest|everybody knows the story there].",
    "{g} and {h} [wrote to each other for {m} years|were married in the spring|opened a shop together in {b}|stayed friends ever after], and [it all began on that road|nobody was more surprised than {d}|the {ob} stands in their window].",
    "After that, {h} [took the coach every spring|slept for {n} hours|was never afraid of a journey again], and {he} always [sat by the window|asked for {d}|brought an apple for {horse}].",
]

# A plot is a list of steps; a step is a list of ways to tell it. Steps may hold several sentences.
PLOTS = [
  [  # the broken wheel
    ["[Beyond|Just before|A mile after] {v} there was a [crack|bang|terrible crack], and the coach [sank on one side|stood still|leaned into the ditch]. “[The wheel|That was the wheel|There goes the left wheel],” said {d} [calmly|sadly|and sat down on a milestone].",
     "At the bottom of a hill the [back|front] wheel came off and [rolled on alone|rolled into a pond|passed them on the left]. {d} [watched it go|said a short word|ran after it, but it was faster]."],
    ["“[Has anybody|Who has] a [rope|nail|hammer]?” asked {d}. {g} had [half a sausage|a pair of scissors|an umbrella]; {h} had [only the {o}|a {job}'s tools|strong arms and no idea].",
     "They had no spare wheel. “[We could walk|We could wait|We could pray],” said {g}, “[it is only {n} miles|somebody will come|it will be dark in an hour].”"],
    ["Then {h} took a [fence post|barn door|broken chair] from the roadside and, with {g} [holding the lamp|pulling|giving advice], [tied|wedged|nailed] it under the axle so that the coach could [slide|limp|crawl] to {v}.",
     "{h} [fetched the wheel|pulled the wheel out of the mud], {g} found the pin in the grass, and with {n} blows of a stone the wheel was on again.",
     "After an hour a farmer came with {n} oxen and an old cart wheel. It was [too large|painted green|older than all of them], but it turned."],
    ["“[Not bad for a {job}|I have seen worse work from wheelwrights|You missed your trade],” said {d}. {h} [blushed|wiped {his} hands|looked at {his} black hands and was proud].",
     "They reached {b} [at midnight|three hours late|with the first light], and [nobody complained|the whole street came out to look at the wheel|{d} let {h} blow the horn]."],
  ],
  [  # the lost thing
    ["When they [were past {v}|had gone {n} miles], {h} [felt under the seat|opened {his} bag|put a hand in {his} pocket] and [turned pale|cried out|sat very still]. “The {ob},” {he} said, “[it is gone|my {ob} is gone|somebody has taken it]!”",
     "In the morning the {ob} was gone. {h} looked [under the bed|in {his} boots|behind the stove] and [found only dust|found a spoon|found nothing]. “It was my {kin}'s,” {he} said. “[I cannot go on without it|It must be somewhere].”"],
    ["They searched the coach from the [roof|lamps] to the [wheels|straw]. {g} turned out {ghis} pockets: [a comb, two corks and a letter|{n} buttons and a biscuit|nothing but crumbs].",
     "“[Think back|Let us think|When did you see it last],” said {g}. “[At {v}|At the last stop|When we crossed the bridge],” said {h}. “[Then it is there still|Then we must go back|Then I know where it is],” said {d}."],
    ["[Suddenly|Just then|At that moment] something [rang|rattled|gleamed] [in the basket of hens|under the cheese|in {horse}'s nosebag]. It was the {ob}.",
     "They drove back {n} miles, and there, in the middle of the road, [lay the {ob}|sat a boy with the {ob} on his knees|stood a cow, looking at the {ob}].",
     "A magpie was sitting on the sign of {inn}, and under it, in the gutter, lay the {ob}, [wet but whole|as bright as ever|without a scratch]."],
    ["{h} [held it to {his} ear|wiped it with {his} sleeve|laughed until {he} cried]. “[I shall tie it to my wrist|I shall never let it go again|You are all my guests tonight],” {he} said.",
     "“[All is well|There|Found],” said {g}, and {h} [could not speak|embraced everyone, even the hens|gave {ghim} {his} last orange]."],
  ],
  [  # the letter
    ["In the mail bag was a letter for [a widow|a fisherman|a girl|an old soldier] in {v}, and {d} [had promised to hand it over in person|had carried it for {n} weeks|said that it was heavier than it looked].",
     "[A boy stopped the coach and gave|In {v} a woman gave|At the toll-gate a man in black gave] {h} a letter. “[For {g} of {b}|Give it to nobody but {g}],” it said on the [cover|back|front]. “But that is me,” said {g}."],
    ["The seal was [red|green|broken|of black wax], and on the back somebody had written: “[Not before Sunday|Read this by the sea|Too late, perhaps|Open with care].”",
     "“[Open it|Read it|What does it say],” said {h}. {g} [turned it over {n} times|held it up to the light|shook {ghis} head]. “[I am afraid to|I think I know the hand|Not on an empty stomach],” {ghe} said."],
    ["Inside there was [one line only|a pressed flower|a drawing of a house|a key and one line]: “[Come home, all is forgiven|I never stopped waiting|The money was in the piano|You were right about the goat].”",
     "It began, “My dear,” and the rest had been [washed away by the rain|eaten by a mouse|written in a language that nobody knew]. {h} [read it|held it to the lamp] all the same, and [made out|guessed] the last word: “[Tomorrow|Forgive|Always|Hurry].”"],
    ["For a long time nobody spoke. Then {g} [smiled|laughed|wept] and said: “[{N} years I have waited for that|Driver, can we go faster|So that is that].”",
     "{d}, who had [heard everything|stopped to listen], [whistled to {horse}|shook the reins|said nothing for once], and the coach went to {b} [faster than ever before|as if it had wings]."],
  ],
  [  # the bridge
    ["The river at {v} had [risen in the night|taken away half the bridge|come over the road]. {d} [stopped|climbed down|looked at it for a long time] and [said nothing|scratched {dhis} head|threw in a stone].",
     "“[The bridge is gone|There is no bridge],” said {d}. “[There was one on Tuesday|It was here last week|It was a good bridge].”"],
    ["“[We must turn back|We can wait|We could swim],” said {g}. “[I cannot wait|My {kin} expects me|Not with a {o}],” said {h}.",
     "On the far bank stood a [ferryman|shepherd|girl] and [shouted something|waved a red cloth|pointed upstream], but the water was louder."],
    ["{h} remembered [an old map|a story of {his} {kin}'s|what the miller had said]: [a mile up|behind the mill|near the three oaks] there was a ford. They found it, and {horse} went in first, up to the [knees|belly], [step by step|snorting|as proud as an admiral].",
     "They took the coach apart: [wheels, doors and seats|everything but the roof] went over on a raft in {m} trips, and {g} [counted the screws|sang a sailor's song|fell in only once].",
     "So they laid [planks|barn doors|ladders] over the gap. {d} led {horse} by the bridle, [talking softly|with closed eyes], and the coach followed, inch by inch. Behind them the last plank [fell into the river|broke]."],
    ["On the other side they lit a fire and [dried their socks|ate the cheese|laughed more than they had for years]. “[I have never been so wet|That was the best hour of my life|Let us not do it again],” said {g}.",
     "“[Well|There],” said {h}, [looking back|wringing out {his} hat], “[now the river knows us|we owe {horse} a bucket of oats|my {kin} will never believe it].”"],
  ],
  [  # the silent stranger
    ["At {v} a stranger got in, [wrapped in a grey cloak|with a hat pulled low|carrying a {o}], and [sat down without a word|paid in old coins|left wet footprints]. “[Good evening|Cold tonight],” said {h}. The stranger [only nodded|did not answer|looked at the moon].",
     "Nobody had seen the stranger get in. “[Have you a ticket|Where are you going],” asked {d}, and the stranger held out [a ticket that was {m} years old|a {o}|a gloved hand with a coin in it]."],
    ["“[A ghost|A spy|A bishop, perhaps],” whispered {g}. “[Nonsense|Hush|Ghosts do not eat cheese],” whispered {h}, but {he} [moved a little closer to the door|counted the miles|held the {ob} tighter].",
     "Every time the coach passed a [church|milestone|gallows|pond], the stranger [sighed|smiled|made a mark in a black book]. {g} [could not bear it|began to hum|pretended to sleep]."],
    ["At {inn} {k} took one look and [dropped the jug|cried out|went white]. “[You have come back|You, after all these years],” said {k}. It was {khis} [brother|son], who had gone to sea {m} years before.",
     "Then the stranger laughed and took off the hat. It was [the new judge of {b}|a famous singer with a sore throat|the queen's own cook|the owner of the coach line], who [wanted to hear what people say|had been told not to speak before Sunday].",
     "In the morning the seat was empty. On it lay [the {ob}|a ring|one white glove] and a note: “[Thank you for not asking|For the kindest passengers on this road].”"],
    ["“[I knew it at once|I said so all along|You never can tell],” said {g}, who had known nothing.",
     "{h} [kept the note|thought about it for a long time|has told it to nobody but me]. On that road, [it is best to be polite to everyone|nobody laughs at strangers any more]."],
  ],
  [  # a race with time
    ["“If I am not in {b} by [noon|six|Sunday|midnight],” said {h}, “[the shop will be sold|my {kin} will sail without me|the wedding will go on without me|the judge will decide against us].” {d} [looked at the sun|took out {dhis} watch|pulled {dhis} hat down].",
     "The [ship|fair|wedding|trial] in {b} would not wait, and they were {n} hours late already. “[Can we do it|Is there any hope],” asked {h}. “[Ask {horse}|There is always hope on a dry road|With these horses?],” said {d}."],
    ["They threw out [the cheese|the trunks|{n} boxes of books] to make the coach lighter, and {g} [wept over each|helped with both hands|offered to walk]. {horse} [flew|ran as never before|laid back {hhis} ears].",
     "They did not stop at {v}; they did not stop at {inn}, where {k} [threw them a loaf in passing|stood at the door with open mouth]. [Hens scattered|Dogs gave up|Milestones went by like fence posts]."],
    ["At the last hill {horse} could do no more. So {h} and {g} got out and pushed, [step by step|singing|up to their ankles in mud], and the bells of {b} began to [ring|strike].",
     "A cart of hay blocked the road. “[Through it|Hold tight],” cried {d}, and they came out on the other side [with straw in their hair|yellow all over|and nobody was hurt but the hay]."],
    ["They came in [with one minute to spare|on the last stroke|late, but so was everybody]. “[You look terrible|You took your time],” said {h}'s {kin}, and [kissed {him}|held the door|laughed].",
     "It turned out that the clock of {b} was [an hour fast|{n} minutes slow|always wrong on a Sunday]. {h} [sat down on the steps and laughed|had never been so glad of a broken clock]."],
  ],
  [  # the animal
    ["A [small brown dog|white goat|grey cat|very fat goose] had got into the coach at {v} and [would not get out|sat down on {h}'s feet|looked at everyone in turn]. “[Whose is it|Has it a ticket],” asked {d}. Nobody knew.",
     "{g} had a [parrot|monkey|young owl|hedgehog] in a basket, and it [did not like the road|ate the tickets|said one word only, and it was not polite]."],
    ["“[It cannot stay|Animals travel on the roof],” said {d}. But it looked at {dhim} with [yellow|sad|round] eyes, and {d} [said no more|gave it {dhis} bread|coughed and shut the door].",
     "By the next milestone it had [eaten {h}'s hat|fallen asleep in {h}'s lap|bitten {g}, but not hard|learned to open the window]."],
    ["In the night it woke them all with its noise. There was [smoke under the door of {inn}|a thief at the window|water on the stairs], and {k} had heard nothing. “[It has saved us|Up, everybody],” cried {h}.",
     "Near {b} it [jumped out of the window|ran ahead|began to cry]. {h} went after it, and behind a hedge {he} found [a child, lost since morning|an old man with a broken leg|the {ob} that the whole county was looking for]."],
    ["From that day it travelled free, and {d} had a [little brass plate|velvet cushion|small ticket] made for it with the words: “[Passenger|Inspector|Friend of the house].”",
     "“[And what shall we call it|It needs a name],” said {g}. “[{b}|Milestone|Tuesday|Soup],” said {h}, and so it was called."],
  ],
  [  # music at the inn
    ["At {inn} there was a contest that evening: whoever [played|sang|told a story] best would [get the great ham|sleep in the bishop's bed|drink free for a year]. {h} [had a {o} and no courage|had never done such a thing|looked at the ham].",
     "The fiddler of {inn} had [broken an arm|gone to {b}|lost {fhis} fiddle in a bet], and the whole room sat [silent|waiting|and stared at their soup]. “[Does nobody play|Can nobody sing],” asked {k}."],
    ["“[Go on|You try it|Now or never],” said {g} and pushed {him}. {h} [stood up|climbed on a bench|closed {his} eyes], and {his} knees [shook|knocked together|were like water].",
     "First the blacksmith sang about [beer|the sea|his mother], and [a pane of glass broke|the dog left the room]. Then it was {h}'s turn."],
    ["At first [nobody listened|{he} could hardly be heard|a chair fell over]. Then the talk died down, {k} put down the jug, and outside even {horse} [lifted {hhis} head|stood still].",
     "It was an old song about [a road that goes nowhere|two sisters and a river|the last coach of the year], and {g} joined in, and {k}, and then everyone, [down to the cat|as if they had known it all their lives]."],
    ["“[That was my mother's song|I have not heard that for {m} years],” said {k}, and wiped {khis} eyes. {h} got [the ham|the bed|a kiss on each cheek] and [shared it with all|did not sleep for joy].",
     "They danced until [the candles were out|three in the morning|the floor gave way]. In the morning {d} had to [carry {g} to the coach|wake them with the horn]."],
  ],
  [  # the robber
    ["In the wood beyond {v} a man with a [rusty pistol|black mask|wooden sword] stood in the road. “[Your money|Stand and deliver|Hands up, please],” he said, [but his voice shook|and sneezed|not very loudly].",
     "“[Halt|Stop the coach],” cried a voice, and {n} men [came out of the fern|stepped from behind the trees|fell out of an oak]. {d} [raised {dhis} hands|yawned|told {horse} to stand]."],
    ["“[You are hungry|You have a fever|That pistol is not loaded],” said {h}, [looking at him closely|who was a {job} and saw such things]. “[Sit down|Come here, give me your hand|Have a sandwich].”",
     "{g} gave {ghis} [watch|purse|hat]. {h} had nothing but the {ob}. “[Not that|Take it, then|It does not even work],” said {h}. “[My {kin} gave it to me|It is worth nothing to you].”"],
    ["The robber [began to cry|dropped the pistol|sat down in the road]. “[It is my first time|I have {n} children at home|I was a {gjob} once],” he said.",
     "Then somebody laughed, for {horse} had [taken the robber's hat in {hhis} teeth|begun to eat the mask|turned round to look], and [nobody could be afraid after that|the robber laughed too]."],
    ["They gave him [bread and a coat|the seat beside the driver|a letter to a baker in {b}], and today he [drives the night coach|sells the best rolls in {b}|is mayor of {v}].",
     "He [thanked them|returned the watch|gave back everything but one orange] and went away between the trees, and nobody on that road [was ever robbed again|ever saw him again]."],
  ],
  [  # lost way
    ["At the crossroads the sign had [fallen down|been turned round|lost its letters]. “[Left|Right|Straight on],” said {d}. “[Are you sure|Why],” asked {h}. “[No|{horse} thinks so|I have a feeling],” said {d}.",
     "After {n} miles {h} saw the same [mill|red barn|dead oak] for the {third} time. “[We are going in circles|Is that not the same one],” {he} said, and {d} [said that mills look alike|turned red]."],
    ["{g} unfolded a map. It was [of another county|upside down|{m} years old], and [a mouse had eaten {b}|the wind took it].",
     "They asked a [shepherd|child|nun|charcoal burner] the way. “[To {b}|You want {b}]? [You cannot get there from here|Follow the smell of bread|Go on until it hurts, then left].”"],
    ["Then {h} [let the reins go|said: let {horse} choose]. {horse} [thought about it|shook {hhis} mane|sniffed the wind], turned into a lane that nobody had seen, and [walked on without a doubt|broke into a trot].",
     "Night fell. Far off there was a light; it was [a window of {inn}|a lamp on a boat|an old woman's kitchen], and {k}, who [was up late|could not sleep], showed them the road."],
    ["When they came over the last hill, {b} lay [below them|at their feet], and every chimney smoked. “[I knew it all the time|There you are|Exactly as planned],” said {d}.",
     "“It was the [longest|best|strangest] way to {b} that anyone has ever found,” said {g}, “and I would not have missed [it|a mile of it].”"],
  ],
  [  # the gift
    ["The {ob} was for {h}'s {kin}, who [was seventy that day|had been ill all winter|had asked for nothing else]. “[I made it myself|It took me {n} months|I paid {n} coins for it],” said {h} when {g} asked.",
     "{h} had promised to bring the {ob} to {b} before [the church bells rang|the first frost|the end of the month], and {he} [would not let it out of {his} hands|kept it under {his} coat|looked at it every mile]."],
    ["At {v} the coach [went over a stone|jumped|took the bend too fast], and there was a small sad [sound|crack]. {h} [did not dare to look|opened the paper slowly]. The {ob} was broken.",
     "At {inn} somebody [sat down on it|took it for another|dropped it on the stairs]. “[Oh no|I am so sorry],” said {g}. {h} [said nothing|tried to smile]."],
    ["“[Give it to me|May I see],” said {g}. {ghe} took out [a needle and some wire|a tiny screwdriver|a pot of glue], and all night there was a light in {ghis} room. In the morning it was [whole again|better than before|playing a new tune].",
     "{k} brought out an old box from the cellar: there lay [another {ob}|the missing piece|a spring of the right size]. “[Take it|It has waited for you],” said {k}."],
    ["When {his} {kin} unwrapped it, [the whole room fell silent|the dog barked|it rang once, clear as water]. “[It is perfect|Where did you find it|It is just like the one I lost],” said the old voice, and {h} [looked at {g}|had no words].",
     "It stands on the shelf to this day, and [nobody can see the crack|on quiet evenings you can hear it|{h} winds it every Sunday]."],
  ],
]

def cast_of(random_):
    """The values of one story."""
    pick, sample = random_.choice, random_.sample
    female = [pick((True, False)) for _ in range(4)]
    women, men = sample(FEMALE, 4), sample(MALE, 4)
    name = [women[i] if female[i] else men[i] for i in range(4)]
    title = [("Miss", "Mrs", "old")[random_.randrange(3)] if female[i] else ("Mr", "old", "Captain")[random_.randrange(3)]
             for i in range(4)]
    family = sample(SURNAMES, 4)
    for i in (1, 2, 3):  # the hero goes by the first name; the others by a first name or by title and family name
        if random_.random() < 0.35:
            name[i] = (title[i] + " " + (name[i] if title[i] == "old" else family[i]))
    towns, jobs, numbers = sample(TOWNS, 3), sample(JOBS, 2), sample(NUMBERS, 2)
    thing = pick(THINGS)
    values = dict(h=name[0], g=name[1], d=name[2], k=name[3], job=jobs[0], gjob=jobs[1], a=towns[0], b=towns[1], v=towns[2],
                  inn=f"the {pick(INN_A)} {pick(INN_B)}", o=f"{pick(SIZES)} {pick(STUFFS)} {thing}", ob=thing, horse=pick(HORSES),
                  n=numbers[0], m=numbers[1], N=numbers[0].capitalize(), kin=pick(KIN), third=pick(("second", "third", "fourth")),
                  fhis=pick(("his", "her")), hhis=pick(("his", "her")))
    for prefix, is_female in zip(("", "g", "d", "k"), female):
        for key, word in zip(("he", "him", "his", "himself"), ("she her her herself" if is_female else "he him his himself").split()):
            values[prefix + key] = word
    return values


INNERMOST = re.compile(r"\[([^\[\]]*)\]")


def expand(template, values, random_):
    """One sentence (or a few) of a template."""
    while True:
        expanded = INNERMOST.sub(lambda match: random_.choice(match.group(1).split("|")), template)
        if expanded == template:
            break
        template = expanded
    text = re.sub(r"\{(\w+)\}", lambda match: values[match.group(1)], template)
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOÉé])(?!one\b|useful)", r"\1n ", text)
    text = text.replace("'", "’").replace(",” asked", "?” asked")
    text = re.sub(r"(“(?:What|Whose?|Where|Why|Are|Is|Can|Has|May|Does)\b[^”“,.:!?]*),”", r"\1?”", text)
    # Capital letters at the start of each sentence, also behind an opening quotation mark.
    return re.sub(r"(^“?|[.!?] “?|\.” “?)([a-zé])", lambda match: match.group(1) + match.group(2).upper(), text)


def introduce(text, name, role):
    """Says once, at the first mention, that this is the driver or the innkeeper, unless the sentence does so itself."""
    return re.sub(rf"\b{name}\b(?! the innkeeper|, who kept|, who wore|, who sang)", f"{name} the {role}", text, count=1, flags=re.I)


def story(random_):
    """One story: a line of text."""
    values = cast_of(random_)
    weather = WEATHER[random_.choice(sorted(WEATHER))]
    plot = random_.choice(PLOTS)
    chance = random_.random
    templates = []
    if chance() < 0.55:
        templates += [random_.choice(weather[0]), random_.choice(INTRO)]
    else:
        templates += [random_.choice(INTRO), random_.choice(weather[0])]
    if chance() < 0.35:
        templates.append(random_.choice(DRIVER))
    templates.append(random_.choice(CAST))
    if chance() < 0.5:
        templates.append(random_.choice(weather[1]))
    templates += random_.sample(TALK, random_.choice((0, 1, 1)))
    templates += random_.sample(ROAD, random_.choice((0, 1, 1, 2)))
    if chance() < 0.3 and not any("{inn}" in way for step in plot for way in step):
        templates.append(random_.choice(INN))
    for step in plot:
        templates.append(random_.choice(step))
        if chance() < 0.1:
            templates.append(random_.choice(weather[1]))
    if chance() < 0.4:
        templates.append(random_.choice(weather[2]))
    templates.append(random_.choice(END))
    text = " ".join(expand(template, values, random_) for template in templates)
    if not any(template in DRIVER for template in templates):
        text = introduce(text, values["d"], "driver")
    if not any(template in INN for template in templates):
        text = introduce(text, values["k"], "innkeeper")
    return text.replace(", and so ", " — and so ") if chance() < 0.3 else text


def stories(seed, count):
    random_ = random.Random(f"stagecoach-stories-{seed}")
    for _ in range(count):
        yield story(random_)
