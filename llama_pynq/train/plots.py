"""The sentences of the story generator: openings, endings and plots, all written for this project.

`stories` describes the template language. Slots of the cast: ``{n}`` the hero's name, ``{N}`` the
same at the start of a sentence, ``{he} {him} {his}`` and ``{He} {His}``; with the prefix ``f`` the
friend's (``{fn}``, ``{fhe}``). ``{en}`` is the wise elder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """One kind of story.

    Attributes
    ----------
    name : str
    beats : tuple of str
        Templates, told in order after the opening.
    worlds : tuple of {"child", "animal"}
        Worlds that its hero can come from; the friend is of the same world.
    pair : bool
        Whether the two friends are heroes together from the first sentence on.
    without : frozenset of str
        Kinds of animal excluded from the plot.
    draws : tuple of tuple of dict
        One dict of each inner tuple is drawn; its slots are fixed for the story.
    """

    name: str
    beats: tuple[str, ...]
    worlds: tuple[str, ...] = ("child", "animal")
    pair: bool = False
    without: frozenset[str] = frozenset()
    draws: tuple[tuple[dict[str, str], ...], ...] = ()

    @property
    def begins_with_day(self) -> bool:
        """Whether the plot can start without an introduction of the hero."""
        return any(beat.startswith("{day}") for beat in self.beats[:2])


def _each(slot: str, *values: str) -> tuple[dict[str, str], ...]:
    return tuple({slot: value} for value in values)


# Ducks and frogs like rain and water, which are a problem in some plots.
_WET = frozenset({"duck", "frog"})

MACROS: dict[str, tuple[str, ...]] = {
    "open_child": (
        "Once upon a time, there was {a_tk} named {n}. {He} lived {home}.",
        "Once upon a time, {a_tk} named {n} lived {home}.",
        "There was once {a_tk} named {n}. {He} lived {home}.",
        "{N} was {a_tk}. {He} lived {home}.",
        "In a small village, there lived {a_tk} named {n}.",
        "{A_tk} named {n} lived {home}.",
        "The {tk} lived {home}. {His} name was {n}.",
    ),
    "open_animal": (
        "Once upon a time, there was {a_tk} named {n}. {He} lived {home}.",
        "Once upon a time, {a_tk} named {n} lived {home}.",
        "There was once {a_tk} named {n}. {He} lived {home}.",
        "{N} was {a_tk}. {He} lived {home}.",
        "Far away, in a green valley, there lived {a_tk} named {n}.",
        "{A_tk} named {n} lived {home}.",
        "The {tk} lived {home}. {His} name was {n}.",
    ),
    "open_pair_child": (
        "Once upon a time, there were two friends named {n} and {fn}. They lived {home}.",
        "{N} and {fn} were [best|good] friends. They lived {home}.",
        "{N} and {fn} lived {home}. They played together every day.",
        "In a small village, there lived two friends named {n} and {fn}.",
    ),
    "open_pair_animal": (
        "Once upon a time, there were two friends named {n} and {fn}. {N} was {a_k} and {fn} was "
        "{a_fk}.",
        "{N} the {k} and {fn} the {fk} were [best|good] friends. They lived in a green valley.",
        "{N} and {fn} were [best|good] friends. {N} was {a_k} and {fn} was {a_fk}.",
        "Far away, in a green valley, there lived two friends. {N} was {a_k} and {fn} was {a_fk}.",
    ),
    "bed": (
        "That night, {n} fell asleep with a smile on {his} face.",
        "When the stars came out, {n} was already fast asleep.",
        "That night, {n} went to bed tired and happy, and {he} dreamed sweet dreams.",
        "It had been a very good day.",
    ),
    "bed_pair": (
        "That night, they both fell asleep with a smile.",
        "When the stars came out, they were both fast asleep.",
        "It had been a very good day.",
        "And they were best friends for ever after.",
    ),
    "glad": (
        "{N} was so happy that {he} jumped for joy.",
        "{N} laughed and danced around.",
        "{N} smiled a big smile.",
        "{N} felt warm and happy inside.",
    ),
    "sad": (
        "{N} sat down on a stone and felt very sad.",
        "{N} felt so sad that {he} began to cry.",
        "{N} felt a tear roll down {his} cheek.",
    ),
    "what": (
        '"What is wrong, {n}?" asked {fn}.',
        '"Why are you so sad, {n}?" asked {fn}.',
        '"{N}, why are you crying?" asked {fn}.',
    ),
    "comes": (
        "Just then, {his} friend {friend} came by.",
        "Soon {his} friend {friend} came down the path.",
        "Then {he} heard a kind voice. It was {his} friend {friend}.",
    ),
    "thanks": (
        '"Thank you, {fn}! You are a true friend," said {n}.',
        '"Thank you so much, {fn}," said {n}.',
        '"Thank you, {fn}," said {n}, and {he} gave {fn} a big hug.',
    ),
}

PLOTS: tuple[Plot, ...] = (
    Plot(
        "lost thing",
        (
            "{He} had {a_o} that {he} loved very much.",
            "{day}, {n} wanted to play with the {thing}, but it was [gone|not there|nowhere to be "
            'seen]. "Oh no! Where is my {thing}?" [cried|said] {n}.',
            "First, {he} looked {s1}. The {thing} was not there. Then {he} looked {s2}. It was not "
            "there either.",
            "<sad> <comes> <what>",
            '"I lost my {thing}," said {n}. "I have looked everywhere."',
            '"Do not worry," said {fn}. "[We can look for it together|I will help you find it]."',
            "So the two friends looked and looked. [They looked high and low. |]At last, {fn} "
            "looked {s3}. [There it was!|There was the {thing}!]",
            "<glad> <thanks>",
            "[They played with the {thing} until the sun went down.|They played together all day "
            "long.]",
            "{N} learned that [everything is easier with a friend|it is good to ask for help].",
            "<bed>",
        ),
    ),
    Plot(
        "new friend",
        (
            "{He} [often played alone|had nobody to play with], and sometimes {he} felt lonely.",
            "{day}, {n} saw somebody new [near the gate|by the path]. It was {a_fk} named {fn}.",
            '"[Hello|Hi]! [Do you want|Would you like] to play with me?" asked {n}. But {fn} was '
            "too shy to answer and hid behind a tree.",
            "{N} did not give up. {He} ran home and came back with {a_o}. {He} put the {thing} "
            "on the grass and [waited|smiled].",
            "[Slowly|Little by little], {fn} came out from behind the tree. "
            '"[What a nice {thing}|I like your {thing}]," {fhe} said [softly|in a small voice].',
            '"We can share it," said {n}. "Come and play!"',
            "Soon they were both laughing. They played with the {thing} [all day long|until the "
            "sun went down], and {fn} was not shy any more.",
            '"Will you come back tomorrow?" asked {fn}. "[Yes|Of course]! I will come every '
            'day," said {n}.',
            "From that day on, {n} and {fn} were best friends, and {n} was never lonely again. "
            "<bed>",
        ),
    ),
    Plot(
        "storm",
        (
            "{day}, {n} went for a long walk with {his} friend {friend}. The sky was blue and the "
            "birds were singing.",
            "But soon dark clouds came. [The wind began to blow.|The wind blew harder and harder.] "
            "[Drip, drop!|Splash!] It began to rain. Then there was a loud boom of thunder.",
            '"I am [scared|afraid]!" cried {fn}. "What can we do?"',
            "{N} was [scared|afraid] too, but {he} wanted to be brave. {He} looked around. "
            "[Not far away|Near the path], {he} saw {shelter}.",
            '"Come on, {fn}! We can hide {hide}," said {n}.',
            "They ran as fast as they could. {Inside} it was [warm and dry|dry]. They sat close "
            "together and [sang a song|told each other funny stories].",
            "After a while, the rain stopped. The sun came out, and there was a big rainbow in the "
            "sky.",
            '"[Look|Oh, look]! How pretty!" said {fn}. "You were very brave, {n}."',
            "{N} smiled. {He} knew that being brave means [doing the right thing even when you are "
            "afraid|helping a friend even when you are afraid].",
            "Then they walked home through the wet grass. <bed>",
        ),
        without=_WET,
        draws=(
            (
                {"shelter": "an old barn", "hide": "in the barn", "Inside": "In the barn"},
                {"shelter": "a small cave", "hide": "in the cave", "Inside": "In the cave"},
                {"shelter": "an old bridge", "hide": "under it", "Inside": "Under the bridge"},
            ),
        ),
    ),
    Plot(
        "sharing",
        (
            '{day}, Mama gave {n} {treat}. "[You can share it with a friend|It is big enough for '
            'two]," said Mama.',
            "But {n} did not want to share. {He} took the {t} and sat down {out} to eat it all "
            "alone.",
            "<comes> {fN} [had not eaten all day|was very hungry]. "
            '"That {t} smells so good," said {fn}. "May I have a little bit?"',
            '"No! It is all mine," said {n}. {fN} looked very sad and walked away.',
            "{N} took a bite of the {t}, but it did not taste [good|sweet]. {He} thought of "
            "{his} sad friend, and {he} felt bad.",
            '"It is no fun to eat alone," thought {n}. So {he} took the {t} and ran after {fn}.',
            '"[Wait|Stop], {fn}! I am sorry," said {n}. "Please have some of my {t}."',
            "They sat down together and shared the {t}. Now it tasted better than "
            "[anything in the world|ever before].",
            'At home, {he} told Mama what had happened. "I am proud of you," said Mama, and gave '
            "{him} a hug.",
            "{N} learned that [sharing makes everything sweeter|good things are better when you "
            "share them]. <bed>",
        ),
        draws=(
            (
                {"treat": "a big apple pie", "t": "pie"},
                {"treat": "a sweet berry cake", "t": "cake"},
                {"treat": "a loaf of warm bread", "t": "bread"},
            ),
        ),
    ),
    Plot(
        "brave climb",
        (
            "{He} was afraid of high places.",
            "{day}, {n} and {his} friend {friend} were playing with {a_o} near {high}. Suddenly, "
            "a strong wind [took the {thing} and carried it away|carried the {thing} high up "
            "into the air].",
            'The {thing} landed at the top of {the_high}. "Oh no! My {thing}!" cried {fn}.',
            "{N} looked up. {The_high} was very high, and {his} legs [were shaking|began to "
            "shake]. But {fn} was so sad that {n} wanted to help.",
            '"I will get it," said {n}. {He} took one small step, and then one more. '
            '"[Do not look down|You can do it]!" called {fn}.',
            "Halfway up, {n} [almost slipped|stopped]. {His} heart went boom, boom, boom. But {he} "
            "[held on tightly and|took a deep breath and] did not give up.",
            "Step by step, {n} climbed to the top. There was the {thing}! {He} could see the whole "
            "valley, and it was [beautiful|wonderful].",
            "[Slowly and carefully|Very slowly], {he} came back down and gave the {thing} to {fn}. "
            '"You are so brave, {n}!" said {fn}.',
            "{N} was proud. {He} was not afraid of high places any more. <bed>",
        ),
        without=frozenset({"squirrel", "cat", "dragon", "duck"}),
        draws=(
            _each("thing", "kite", "hat", "balloon"),
            (
                {"high": "a tall rock", "the_high": "the rock", "The_high": "The rock"},
                {"high": "a steep hill", "the_high": "the hill", "The_high": "The hill"},
                {"high": "an old tower", "the_high": "the tower", "The_high": "The tower"},
            ),
        ),
    ),
    Plot(
        "growing a seed",
        (
            '{day}, {en} gave {n} a tiny seed. "[Plant it and take good care of it|Put it in the '
            'ground and give it water]," said {en}.',
            "{N} dug a little hole [in the garden|near the gate] and put the seed in. {He} gave it "
            "water and waited. But nothing happened.",
            "The next day, {n} looked again. Still there was nothing. "
            '"Why does it not grow?" {he} asked.',
            '<comes> "[A seed needs time|You must wait], {n}," said {fn}. "[Give it water every '
            'day and do not give up|It needs sun and rain and a little love]."',
            "So {n} gave the seed water every morning. {He} even sang it a little song. Days "
            "went by, and {n} waited and waited.",
            "Then, one morning, {n} saw something small and green. [It was a tiny leaf!|The seed "
            'had a leaf!] "It is growing!" {he} cried.',
            "The little plant grew taller and taller. At last, it became {plant}.",
            '"[How beautiful|How wonderful]!" said {fn}. {eN} smiled. "You see, {n}? Good things '
            'take time."',
            "{N} was very proud. {share} <bed>",
        ),
        draws=(
            (
                {
                    "plant": "a big yellow sunflower",
                    "share": "Everybody came to look at the sunflower.",
                },
                {
                    "plant": "a beautiful red rose",
                    "share": "Everybody came to smell the rose.",
                },
                {
                    "plant": "a big orange pumpkin",
                    "share": "They made warm soup from the pumpkin, and everybody had some.",
                },
            ),
        ),
    ),
    Plot(
        "birthday surprise",
        (
            "{day}, {n} woke up very early. It was {his} birthday! {He} [jumped|hopped] out of bed "
            "and ran to find Mama.",
            'But Mama was busy. "Go outside and play, my dear," said Mama.',
            'Then {n} went to see {his} friend {friend}. "[Hello|Hi], {fn}! Do you know what day '
            'it is?" asked {n}. "[No|I do not know]," said {fn}. "I have to go now."',
            '<sad> "Everybody has forgotten my birthday," {he} [thought|said].',
            "All day long, {n} walked around alone. When the sun went down, {he} walked slowly "
            "home. Everything was [dark|very quiet].",
            '{N} opened the door. "Surprise!" cried Mama and {fn} and all {his} friends. There '
            "was a big cake with [candles|berries] on top, and there were balloons everywhere.",
            '"We did not forget," said {fn} with a smile. Then {fn} gave {him} {a_o}.',
            "<glad> They ate the cake and sang and danced. {N} loved the {thing} most of all.",
            '"[This is the best birthday ever|I have the best friends in the world]," said {n}. '
            "<bed>",
        ),
        without=frozenset({"squirrel", "duck", "frog", "hedgehog"}),
    ),
    Plot(
        "learning a skill",
        (
            "{day}, {n} saw {a_fk} named {fn} who could {skill} very well. "
            '"I want to {skill} too!" said {n}.',
            "{N} went {where} and tried. But {fail}. {He} tried again and again, but {he} could "
            "not do it.",
            '"I will never learn to {skill}," said {n}. <sad>',
            '{fN} came and sat next to {him}. "I could not do it at first either," said {fn}. "[I '
            'will help you|Let me show you how]."',
            "So {fn} showed {n} what to do. They worked at it every day, in the morning and in the "
            'evening. When {n} made mistakes, {fn} always said, "[Try again|Once more], {n}!"',
            'Then, one day, it happened. {done} "[I can do it|I did it]! I can {skill}!" cried '
            "{n}.",
            '"[I knew you could do it|Well done]!" said {fn}. <glad> <thanks>',
            "{N} learned that [nobody can do everything at first|you can learn anything if you "
            "keep trying]. <bed>",
        ),
        without=_WET,
        draws=(
            (
                {
                    "skill": "swim",
                    "where": "to the pond",
                    "fail": "the water was deep and cold",
                    "done": "The water carried {him}, and {he} moved forward all alone!",
                },
                {
                    "skill": "whistle",
                    "where": "outside",
                    "fail": "there was only air and no sound",
                    "done": "A clear, sweet sound came out, like the song of a bird!",
                },
                {
                    "skill": "skate",
                    "where": "to the rink",
                    "fail": "the ice was slippery and {he} fell down",
                    "done": "{He} went round and round on the ice and did not fall!",
                },
                {
                    "skill": "dance",
                    "where": "to the meadow",
                    "fail": "{he} tripped and fell into the grass",
                    "done": "{He} turned round and round and did not fall!",
                },
            ),
        ),
    ),
    Plot(
        "baby bird",
        (
            '{day}, {n} heard a tiny sound {out}. "Peep, peep!" It was a baby bird. It had '
            "fallen out of its nest.",
            '"[Poor little bird|Oh, you poor thing]," said {n}. "Do not be afraid. I will help '
            'you."',
            "The nest was high up in a tree. {He} tried to reach it, but {he} was [too small|not "
            "tall enough].",
            'So {n} ran to Papa. "Please help me! A baby bird has fallen out of its nest," {he} '
            "said.",
            '"[You did the right thing|I am glad that you came to me], {n}," said Papa. "[We '
            'must be very gentle|Let us be quick and quiet]."',
            "{N} held the little bird [very gently|softly], and Papa brought a ladder. Step by "
            "step, they climbed up and put the bird back into the nest.",
            "Soon the mother bird came back and [sang a happy song|put a wing around the baby]. "
            '"Thank you, {n}!" she sang.',
            "<glad> Every day after that, {he} went to the tree to say hello. And one day, {he} "
            "saw the little bird spread its wings and fly up into the blue sky.",
            "{N} learned that [even small helpers can do big things|it is good to ask for help].",
        ),
        without=frozenset({"cat", "duck", "dragon", "squirrel", "frog"}),
    ),
    Plot(
        "afraid of the dark",
        (
            "{He} was [brave all day|never afraid by day], but at night {he} was afraid of the "
            "dark.",
            "One night, {n} was in bed when {he} heard a strange sound. {Sound} {He} pulled the "
            "blanket over {his} head.",
            '"Papa! Papa! There is a monster {where}!" cried {n}.',
            'Papa came with a small lamp. "[There are no monsters here|Do not be afraid], my '
            'dear," said Papa. "[Let us look together|Come, we will go and see]."',
            "{N} did not want to look. But Papa stayed close to {him}, and the lamp made a warm "
            "yellow light. Step by step, they went to look {where}.",
            "{There} [There was no monster at all.|It was not a monster at all.]",
            '"It was only {cause}!" said {n}, and {he} began to laugh. Papa laughed too.',
            '"The dark is just [like a big blanket|the day with its eyes closed]," said Papa. "It '
            'helps the whole world to sleep."',
            "{N} looked out at the moon and the stars, and the night looked [friendly|beautiful] "
            "now.",
            '"Good night, {n}," said Papa. "Good night, Papa," said '
            "{n}. And {he} was not afraid of the dark any more.",
        ),
        without=frozenset({"duck", "frog", "hedgehog", "squirrel"}),
        draws=(
            (
                {
                    "Sound": "Tap, tap, tap!",
                    "where": "at the window",
                    "There": "A little branch was moving in the wind.",
                    "cause": "a branch",
                },
                {
                    "Sound": "Scratch, scratch, scratch!",
                    "where": "under the bed",
                    "There": "A tiny beetle was sitting there.",
                    "cause": "a beetle",
                },
                {
                    "Sound": "Creak, creak, creak!",
                    "where": "behind the door",
                    "There": "The door was moving in the wind.",
                    "cause": "the door",
                },
            ),
        ),
    ),
    Plot(
        "lost in the forest",
        (
            "{day}, {n} saw a beautiful {colour} butterfly. {He} ran after it. The butterfly flew "
            "between the trees, and {n} ran and ran.",
            "Then the butterfly was gone. {N} looked around. All the trees looked the same."
            ' "Oh no! Which way is home?" {he} said.',
            "{He} went left and {he} went right, but there were only trees. It was getting dark. "
            "<sad>",
            '"Why are you crying?" asked a deep voice. High up in a tree sat an old owl with big '
            "round eyes.",
            '"I am lost," said {n}. "I want to go home to Mama."',
            '"[Do not worry|Dry your tears], little one," said the owl. "[I can see the whole '
            'forest from up here|I know every path in this forest]. Follow me!"',
            "They went past [a little stream|a big rock] and over a bridge. At last, {n} saw a "
            "light. It was home!",
            'Mama was standing at the door. "There you are!" cried Mama, and hugged {him} tightly.',
            '"I am sorry, Mama," said {n}. "I will never go so far again."',
            "The owl [smiled|hooted softly] and flew back into the night. <bed>",
        ),
        without=frozenset({"duck", "frog", "mouse", "dragon", "bear"}),
    ),
    Plot(
        "telling the truth",
        (
            "{day}, {n} was playing inside with {a_o}. Suddenly, the {thing} hit a {cup} on the "
            "table. Crash! The {cup} fell down and broke.",
            '"Oh no!" [thought|whispered] {n}. "Papa will be so angry." {He} quickly hid the '
            "pieces [under the bed|behind the door].",
            'Soon Papa came in. "Have you seen my {cup}?" asked Papa. "No," said {n}. But {he} '
            "felt [very bad|sick] inside.",
            "{N} could not play any more. {He} went to see {his} friend {friend} "
            "and told {fhim} everything.",
            '"[You should tell the truth|Tell Papa what happened]," said {fn}. "It is hard, but '
            'you will feel better."',
            "So {n} went home. {He} took the pieces and put them on the table. "
            '"I broke your {cup}, Papa," {he} said. "I am very sorry."',
            'Papa was quiet for a moment. Then Papa gave {n} a hug. "Thank you for telling the '
            'truth," said Papa. "[That was very brave|You are more important than a {cup}]."',
            "Together they mended the {cup}. It was not perfect, but "
            'Papa said, "Now I love it even more."',
            "{N} learned that [it is always better to tell the truth|the truth makes your heart "
            "feel light]. <bed>",
        ),
        without=frozenset({"duck", "frog", "hedgehog", "squirrel"}),
        draws=(_each("thing", "ball"), _each("cup", "cup", "plate", "teapot")),
    ),
    Plot(
        "building together",
        (
            '{day}, {n} said, "Let us build {a_thing}!" "[Yes|What a good idea]!" said {fn}.',
            "{N} wanted to make it [very|really] big. {fN} wanted to make it [very|really] "
            "pretty. So they each built their own part.",
            "But when they put the parts together, they did not fit. [Crash!|Bump!] {Fell}",
            '"It is your fault!" said {n}. "No, it is your fault!" said {fn}. They were both '
            "angry.",
            "[After a while|Soon], {n} felt sad. It was no fun to be angry. {He} went to {fn} and "
            'said, "I am sorry. I should have listened to you."',
            '"I am sorry too," said {fn}. "Let us try again, but this time [together|as a team]."',
            "So they made a plan. {N} {did_one}, and {fn} {did_two}. They [worked all "
            "afternoon|helped each other] and sang while they worked.",
            "When the sun went down, the {build} was ready. It was big and it was pretty. {Use}",
            '"We are a good team," said {n}. "[The best|Yes, we are]," said {fn}.',
            "They learned that [two friends can do more than one|working together makes hard "
            "things easy]. <bed_pair>",
        ),
        pair=True,
        draws=(
            (
                {
                    "a_thing": "a little house in the tree",
                    "build": "house in the tree",
                    "Fell": "Everything fell down.",
                    "did_one": "held the wood",
                    "did_two": "tied the ropes",
                    "Use": "They climbed up and looked at the evening sky.",
                },
                {
                    "a_thing": "a boat",
                    "build": "boat",
                    "Fell": "Everything fell into the grass.",
                    "did_one": "cut the wood",
                    "did_two": "painted it blue",
                    "Use": "They put it on the pond, and it did not sink.",
                },
                {
                    "a_thing": "a sand castle",
                    "build": "sand castle",
                    "Fell": "The tower fell down.",
                    "did_one": "carried the water",
                    "did_two": "shaped the sand",
                    "Use": "They put a little flag on top.",
                },
            ),
        ),
    ),
    Plot(
        "the little star",
        (
            "Every night, {he} looked up at the stars and said good night to them.",
            "One night, a [tiny|little] star fell from the sky. It landed {out} and [shone "
            "softly|gave a soft light].",
            '{N} ran outside. "Are you hurt, little star?" {he} asked.',
            '"No," said the star in a tiny voice. "But I want to go back home to the sky."',
            '"I will help you," said {n}. {He} put the star in a {colour} {carry} and climbed '
            "up the highest hill. {He} threw the star as high as {he} could, but it came down "
            "again.",
            'Then {n} asked {his} friend {friend} for help. "[Let me think|I have an idea]," said '
            '{fn}. "We can use my kite!"',
            "They tied the star to the kite with a [thin|long] string. The wind was strong, and "
            "the kite went up, up, up, until it touched the clouds.",
            "The little star jumped back into the sky. There it shone brighter than all "
            'the others. "Thank you, my friends!" it called.',
            '"Goodbye, little star!" called {n} and {fn}. They were happy, and a little bit sad '
            "too.",
            "Since then, the little star winks at {n} every night. And {n} always [winks "
            "back|smiles and says good night].",
        ),
        draws=(
            _each("colour", "red", "blue", "green", "yellow"),
            _each("carry", "basket", "bag"),
        ),
    ),
    Plot(
        "a warm scarf",
        (
            "It was winter, and the snow was deep. {eN} had made {n} a {colour} scarf. It was "
            "soft and warm, and {n} loved it.",
            "One cold morning, {n} went out to play in the snow. [Under a tree|Near the gate], "
            "{he} saw {a_fk} sitting all alone and shaking.",
            '"What is wrong?" asked {n}. "My name is {fn}, and I am so cold," said the {fk}. "I '
            'have [no scarf|nothing to keep me warm]."',
            "{N} did not want to give {his} scarf away. But then {he} took it off and put it "
            'around {fn}. "[You need it more than I do|Now you will be warm]," {he} said.',
            '"Thank you! You are so kind," said {fn}, and {fhe} smiled for the first time.',
            "{N} walked home. {He} was cold outside, but warm inside.",
            '"You have a good heart, {n}," said {en}. And '
            "[the next day|a few days later], {en} gave {him} a new scarf.",
            "Now {n} and {fn} both had a scarf, and they played in the snow together every day. "
            "<bed>",
        ),
        without=_WET | {"dragon", "bear", "hedgehog", "mouse"},
        draws=(_each("colour", "red", "blue", "green", "yellow"),),
    ),
    Plot(
        "the race",
        (
            "{He} was a very fast runner, and {he} wanted to win the big race more than anything.",
            "{His} friend {friend} was slow, but {fhe} wanted to run in the race too.",
            "At last, the day of the race came. Everybody came to watch. "
            '"Ready, steady, go!" called {en}.',
            "{N} ran like the wind. Soon {he} was ahead of all the others. {He} could already "
            "see the [end of the race|finish].",
            'Then {he} heard a cry. "Ouch!" {fN} had fallen over a stone and could not get up.',
            "If {n} stopped, {he} would not win. But {fn} was {his} friend. So {n} turned around "
            "and ran back.",
            '"Are you hurt, {fn}?" asked {n}. "[My leg hurts|Yes]," said {fn}. "You should go on '
            'and win!" "No," said {n}. "We will [finish|go] together."',
            "{fN} held on to {n}, and they walked slowly, step by step. They came in last of all.",
            'But everybody cheered for them! {eN} gave {n} [a golden ribbon|a shiny cup]. "This '
            'is for the biggest heart," said {en}.',
            "{N} had not won the race, but {he} had never been so [proud|happy]. <bed>",
        ),
        without=_WET | {"hedgehog"},
    ),
    Plot(
        "soup for everybody",
        (
            "It was a cold and rainy day. {N} had only one carrot, and {fn} had only one potato.",
            '"I cannot make soup from one carrot," said {n}. "And I cannot make soup from one '
            'potato," said {fn}.',
            'Then {n} had an idea. "Let us put them into one pot!" {he} said. So they made a '
            "fire and put the carrot and the potato into a pot with some water.",
            "{N} tasted the soup. It was [too thin|like water]. "
            '"[Let us ask the others|We can ask for help]," said {fn}.',
            "So they knocked at every door. {eN} gave them an onion. An old goat gave them [some "
            "salt|some cabbage].",
            "Soon the soup began to smell [wonderful|very good]. Everybody came with a bowl and a "
            "spoon.",
            '"Is there enough for all of us?" asked {en}. "Yes!" said {n} and {fn}. They sat '
            "around the fire and ate and laughed, and nobody was hungry any more.",
            '"It is the best soup in the world," said {en}, "because everybody gave a little."',
            "Outside it was still cold and rainy, but inside it was warm. <bed_pair>",
        ),
        pair=True,
    ),
    Plot(
        "the lost lamb",
        (
            "{He} helped the farmer every day.",
            '{day}, the farmer counted the sheep. "One lamb is missing!" said the farmer. "[It '
            'is so small|It must be lost]."',
            '"I will find it," said {n}. {He} ran to the river, but the lamb was not there. {He} '
            "ran to the old mill, but the lamb was not there either.",
            "It began to rain. {N} was wet and tired, but {he} [did not give up|went on].",
            'Then {n} met {his} friend {friend}. "Have you seen a little lamb?" asked {n}. '
            '"No," said {fn}, "but I heard a sound near the {place}."',
            'Together they ran to the {place}. "Baa! Baa!" There was the little lamb! It was '
            "stuck in a bush and could not get out.",
            "{N} and {fn} pulled together. One, two, three! The lamb was free. They led it all "
            "the way back to the farm.",
            'The farmer was so happy. "You are [very brave|a true hero], {n}!" said the farmer, '
            "and gave {n} and {fn} [a big bowl of milk|a warm supper].",
            "That night, the lamb slept next to its mother, and {n} slept by the fire. {He} was "
            "tired, but very proud.",
        ),
        without=frozenset(
            ("bear", "dragon", "duck", "fox", "frog", "hedgehog", "mouse", "rabbit", "squirrel")
        ),
        draws=(_each("place", "old bridge", "big rock", "dark forest"),),
    ),
    Plot(
        "singing on the stage",
        (
            "{He} loved to sing, but only when nobody was there.",
            '{day}, {a_fk} named {fn} heard {n} sing. "You have a beautiful voice!" '
            'said {fn}. "You should sing at the summer party."',
            '"Oh no," said {n}. "I am too shy. Everybody will look at me."',
            "But {fn} asked again and again, and at last {n} said yes.",
            "Then the evening of the party came. {N} stood in front of everybody. {He} opened "
            "{his} mouth, but no sound came out. So {he} ran away.",
            '{fN} found {him} {out}. "I cannot do it," said {n} sadly. '
            '"[Just look at me|Close your eyes]," said {fn}, "and [sing only for me|think of '
            'something nice]. I will stand right next to you."',
            "So they went back together. {N} took a deep breath. Then {he} began to "
            "sing. At first, it was very quiet. But soon {his} song filled the air.",
            "When the song was over, everybody clapped and cheered. "
            '"[More! More!|Again! Again!]" they called.',
            "<glad> <thanks>",
            "{N} learned that [a good friend can make you brave|being brave is easier with a "
            "friend]. <bed>",
        ),
    ),
    Plot(
        "a rainy day",
        (
            "One day, it rained and rained. {N} and {fn} could not go outside. They looked out "
            "of the window and [sighed|felt sad].",
            '"There is nothing to do," said {n}. "I know! Let us play {game}," said {fn}. They '
            "played {game}, but soon they were bored again.",
            'Then {n} saw a big {colour} blanket. "Let us make {made}!" {he} said.',
            "They put the blanket over two chairs. {Crept} They [laughed and laughed|had so much "
            "fun].",
            '"{Line}," said {n}. "{Reply}!" said {fn}.',
            "Suddenly, they heard a small sound at the door. It was a little kitten, and it was "
            'all wet. "[Poor kitten|Oh, you poor thing]!" said {fn}. "Come in and get warm."',
            "They dried the kitten with a soft towel and gave it some milk. The kitten [began to "
            "purr|curled up in the blanket and purred].",
            'Mama brought them some bread and honey. "What a fine {build} you have," said Mama.',
            '"I hope it will rain again tomorrow," said {n}, and they both laughed. <bed_pair>',
        ),
        worlds=("child",),
        pair=True,
        draws=(
            _each("game", "cards", "hide and seek"),
            (
                {
                    "made": "a ship",
                    "build": "ship",
                    "Crept": "Then they climbed in and sailed over the wide blue sea.",
                    "Line": "I can see an island",
                    "Reply": "And I can see a whale",
                },
                {
                    "made": "a castle",
                    "build": "castle",
                    "Crept": "Then they crept in and were knights.",
                    "Line": "I can hear a dragon",
                    "Reply": "Let us ask it to have tea with us",
                },
                {
                    "made": "a cave",
                    "build": "cave",
                    "Crept": "Then they crept in and were two brown bears.",
                    "Line": "I am a hungry bear",
                    "Reply": "And I am a sleepy bear",
                },
            ),
        ),
    ),
)
