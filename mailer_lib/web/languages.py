"""What recipients read on our pages, in their language: by the contact's locale, else by what the browser asks for."""

from dataclasses import dataclass

DEFAULT = "en"


@dataclass(frozen=True)
class Texts:
    """Sentences with ``{list}`` and ``{address}`` to be filled in."""

    language: str
    leave_title: str
    leave_address: str
    leave_this: str
    leave_all: str
    leave_button: str
    left_title: str
    left_list: str
    left_all: str
    left_already: str
    confirm_title: str
    confirm_intro: str
    confirm_button: str
    confirmed_title: str
    confirmed: str
    refused_title: str
    refused_left: str
    refused_other: str
    bad_title: str
    bad: str
    expired_title: str
    expired: str
    nobody_title: str
    nobody: str
    error_title: str
    error: str


TEXTS = {
    "en": Texts(
        language="en",
        leave_title="Unsubscribe?",
        leave_address="This is about mail to {address}.",
        leave_this="No more mail from “{list}”",
        leave_all="No more mail from any of our lists",
        leave_button="Unsubscribe",
        left_title="You are unsubscribed",
        left_list="You won’t get any more mail from “{list}”. A message that is already on its way may still arrive.",
        left_all="You won’t get any more mail from our lists. A message that is already on its way may still arrive.",
        left_already="You have left “{list}” already.",
        confirm_title="One click left",
        confirm_intro="Please confirm that you want to get “{list}” at {address}.",
        confirm_button="Yes, subscribe me",
        confirmed_title="Thank you!",
        confirmed="You are now subscribed to “{list}”. You can leave at any time through the link in every message.",
        refused_title="This link no longer works",
        refused_left="You unsubscribed after this link was sent. If you want to get “{list}”, please sign up again.",
        refused_other="This address can’t be subscribed to “{list}”. Please write to us if you think that is wrong.",
        bad_title="This link doesn’t work",
        bad="Perhaps it was cut off. Please open it from the message, or copy all of it.",
        expired_title="This message is no longer here",
        expired="We keep messages only for a while. Your subscription isn’t affected.",
        nobody_title="You aren’t in our lists",
        nobody="We no longer hold the address that this link was sent to, so it gets no mail from us.",
        error_title="Something went wrong",
        error="It is our fault, and nothing was changed. Please try again in a minute.",
    ),
    "de": Texts(
        language="de",
        leave_title="Abmelden?",
        leave_address="Es geht um E-Mails an {address}.",
        leave_this="Keine E-Mails mehr von „{list}“",
        leave_all="Keine E-Mails mehr von allen unseren Listen",
        leave_button="Abmelden",
        left_title="Sie sind abgemeldet",
        left_list="Sie erhalten keine E-Mails mehr von „{list}“. Eine Nachricht, die schon unterwegs ist, kann noch "
        "ankommen.",
        left_all="Sie erhalten keine E-Mails mehr von unseren Listen. Eine Nachricht, die schon unterwegs ist, kann "
        "noch ankommen.",
        left_already="Sie haben „{list}“ bereits abbestellt.",
        confirm_title="Nur noch ein Klick",
        confirm_intro="Bitte bestätigen Sie, dass Sie „{list}“ an {address} erhalten möchten.",
        confirm_button="Ja, anmelden",
        confirmed_title="Vielen Dank!",
        confirmed="Sie erhalten nun „{list}“. Über den Link in jeder Nachricht können Sie sich jederzeit abmelden.",
        refused_title="Dieser Link gilt nicht mehr",
        refused_left="Sie haben sich abgemeldet, nachdem dieser Link verschickt wurde. Wenn Sie „{list}“ erhalten "
        "möchten, melden Sie sich bitte neu an.",
        refused_other="Diese Adresse kann nicht für „{list}“ angemeldet werden. Bitte schreiben Sie uns, wenn Sie das "
        "für einen Irrtum halten.",
        bad_title="Dieser Link funktioniert nicht",
        bad="Vielleicht wurde er abgeschnitten. Bitte öffnen Sie ihn aus der Nachricht, oder kopieren Sie ihn ganz.",
        expired_title="Diese Nachricht ist nicht mehr verfügbar",
        expired="Wir bewahren Nachrichten nur eine Zeit lang auf. Ihre Anmeldung ist davon nicht betroffen.",
        nobody_title="Sie stehen nicht in unseren Listen",
        nobody="Die Adresse, an die dieser Link ging, ist bei uns nicht mehr gespeichert und erhält keine E-Mails.",
        error_title="Da ist etwas schiefgegangen",
        error="Der Fehler liegt bei uns, und nichts wurde geändert. Bitte versuchen Sie es gleich noch einmal.",
    ),
    "fr": Texts(
        language="fr",
        leave_title="Se désabonner ?",
        leave_address="Il s’agit des messages envoyés à {address}.",
        leave_this="Ne plus recevoir « {list} »",
        leave_all="Ne plus rien recevoir de toutes nos listes",
        leave_button="Me désabonner",
        left_title="Vous êtes désabonné",
        left_list="Vous ne recevrez plus « {list} ». Un message déjà parti peut encore vous parvenir.",
        left_all="Vous ne recevrez plus rien de nos listes. Un message déjà parti peut encore vous parvenir.",
        left_already="Vous avez déjà quitté « {list} ».",
        confirm_title="Plus qu’un clic",
        confirm_intro="Merci de confirmer que vous souhaitez recevoir « {list} » à l’adresse {address}.",
        confirm_button="Oui, je m’abonne",
        confirmed_title="Merci !",
        confirmed="Vous êtes abonné à « {list} ». Chaque message contient un lien pour vous désabonner.",
        refused_title="Ce lien n’est plus valable",
        refused_left="Vous vous êtes désabonné après l’envoi de ce lien. Pour recevoir « {list} », merci de vous "
        "inscrire de nouveau.",
        refused_other="Cette adresse ne peut pas être abonnée à « {list} ». Écrivez-nous si cela vous semble une "
        "erreur.",
        bad_title="Ce lien ne fonctionne pas",
        bad="Il a peut-être été coupé. Ouvrez-le depuis le message ou copiez-le en entier.",
        expired_title="Ce message n’est plus disponible",
        expired="Nous ne conservons les messages qu’un certain temps. Votre abonnement n’est pas concerné.",
        nobody_title="Vous n’êtes pas dans nos listes",
        nobody="Nous n’avons plus l’adresse à laquelle ce lien a été envoyé : elle ne reçoit rien de notre part.",
        error_title="Une erreur s’est produite",
        error="Elle vient de chez nous et rien n’a été modifié. Merci de réessayer dans une minute.",
    ),
    "es": Texts(
        language="es",
        leave_title="¿Darse de baja?",
        leave_address="Se trata de los mensajes a {address}.",
        leave_this="No recibir más «{list}»",
        leave_all="No recibir nada más de ninguna de nuestras listas",
        leave_button="Darme de baja",
        left_title="Te has dado de baja",
        left_list="No recibirás más mensajes de «{list}». Uno que ya esté en camino aún puede llegar.",
        left_all="No recibirás más mensajes de nuestras listas. Uno que ya esté en camino aún puede llegar.",
        left_already="Ya te habías dado de baja de «{list}».",
        confirm_title="Solo falta un clic",
        confirm_intro="Confirma, por favor, que quieres recibir «{list}» en {address}.",
        confirm_button="Sí, quiero suscribirme",
        confirmed_title="¡Gracias!",
        confirmed="Ya recibes «{list}». Puedes darte de baja cuando quieras con el enlace de cada mensaje.",
        refused_title="Este enlace ya no vale",
        refused_left="Te diste de baja después de que se enviara este enlace. Si quieres recibir «{list}», "
        "suscríbete de nuevo.",
        refused_other="Esta dirección no puede suscribirse a «{list}». Escríbenos si crees que es un error.",
        bad_title="Este enlace no funciona",
        bad="Quizá se cortó. Ábrelo desde el mensaje o cópialo entero.",
        expired_title="Este mensaje ya no está disponible",
        expired="Guardamos los mensajes solo un tiempo. Tu suscripción no cambia.",
        nobody_title="No estás en nuestras listas",
        nobody="Ya no tenemos la dirección a la que se envió este enlace, así que no recibe nada nuestro.",
        error_title="Algo ha fallado",
        error="Es culpa nuestra y no se ha cambiado nada. Inténtalo de nuevo en un minuto.",
    ),
}


def texts_for(locale: str | None, accept_language: str | None) -> Texts:
    """In the contact's language if we speak it, else in the best of ``Accept-Language`` (RFC 9110 §12.5.4)."""
    if locale and (found := TEXTS.get(_primary(locale))):
        return found
    for language in _wanted(accept_language or ""):
        if found := TEXTS.get(language):
            return found
    return TEXTS[DEFAULT]


def _primary(tag: str) -> str:
    return tag.strip().replace("_", "-").split("-")[0].lower()


def _wanted(header: str) -> list[str]:
    """Primary subtags of an Accept-Language header, best first; what can't be read is left out."""
    weighed: list[tuple[float, int, str]] = []
    for position, part in enumerate(header[:400].split(",")):
        tag, _, parameters = part.partition(";")
        name, _, value = parameters.partition("=")
        try:
            quality = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            continue
        if tag.strip() and 0 < quality <= 1:
            weighed.append((-quality, position, _primary(tag)))
    return [language for _, _, language in sorted(weighed)]
